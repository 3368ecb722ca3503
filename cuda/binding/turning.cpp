#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "binding/bindings.hpp"
#include "binding/device_traits.hpp"
#include "launch/turn_plan.hpp"
#include "simulator/run_turn.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace convt::binding {
namespace {

// A tensor of 16 bits with its channels innermost, whoever reads it then.
struct Turning {
  TurnParams params;
  Integers strides;   // of the copy
  double predicted_us;
};
constexpr Operand kHalves = Operand::bfloat16;   // 16 bits are moved, whatever they are

std::optional<Turning> plan(const Integers& size, const Integers& strides, const std::string& dtype,
                            const std::optional<nb::dict>& device) {
  if (const DType of = dtype_of(dtype); of != DType::bfloat16 && of != DType::float16) return std::nullopt;
  TurnShape shape{strides_of(size, strides, "grad_output"), size[0], 1, size[1], size[1]};
  const int rank = int(size.size()) - 2;
  std::copy(size.begin() + 2, size.end(), shape.extents.end() - rank);
  if (shape.channels % operand_vector(kHalves) != 0 || !can_turn(shape)) return std::nullopt;
  const Strides turned = turned_strides(shape);
  Turning made{plan_turning(shape, kHalves), {turned[0], turned[1]}, turning_time(shape, kHalves, traits_of(device))};
  made.strides.insert(made.strides.end(), turned.end() - rank, turned.end());
  return made;
}

TurnParams placed(const Turning& turning, std::uintptr_t source, std::uintptr_t target) {
  TurnParams params = turning.params;
  place_turning(params, reinterpret_cast<const void*>(source), reinterpret_cast<void*>(target));
  return params;
}

}  // namespace

void bind_turning(nb::module_& module) {
  nb::class_<Turning>(module, "Turning", "How a GPU copies a tensor so that its channels are innermost.")
      .def_ro("strides", &Turning::strides)
      .def_ro("predicted_us", &Turning::predicted_us);
  module.def(
      "cuda_turning", &plan, "size"_a, "strides"_a, "dtype"_a, "device"_a.none(),
      "How a GPU copies (N, C, *spatial) so that C is innermost; `device` is an entry of cuda_devices(), None an "
      "H200. None for elements that have not 16 bits, for channels that are no multiple of 8, and for 2^31 "
      "pixels of an image.");
  module.def(
      "simulate_turning",
      [](const Turning& turning, std::uintptr_t source, std::uintptr_t target, bool backwards) {
        const TurnParams params = placed(turning, source, target);
        nb::gil_scoped_release release;
        simulator::run_turn(params, kHalves, backwards);
      },
      "turning"_a, "source"_a, "target"_a, "backwards"_a = false,
      "Copies on the host through the kernel's code, thread by thread, in either order.");
#ifdef CONVT_WITH_CUDA
  module.def(
      "cuda_turn",
      [](const Turning& turning, std::uintptr_t source, std::uintptr_t target, int device, std::uintptr_t stream) {
        const TurnParams params = placed(turning, source, target);
        nb::gil_scoped_release release;
        launch_turning_on(device, params, kHalves, reinterpret_cast<void*>(stream));
      },
      "turning"_a, "source"_a, "target"_a, "device"_a, "stream"_a,
      "Copies on a stream of a GPU, without waiting for it.");
#endif
}

}  // namespace convt::binding
