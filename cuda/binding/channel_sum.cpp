#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "binding/bindings.hpp"
#include "binding/device_traits.hpp"
#include "launch/channel_sum.hpp"
#include "simulator/run_channel_sum.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace convt::binding {
namespace {

std::optional<ChannelSumPlan> plan(const Integers& size, const Integers& strides, const std::string& dtype,
                                   const std::optional<nb::dict>& device) {
  const Strides all = strides_of(size, strides, "grad_output");
  std::int64_t sizes[2 + kAxes] = {size[0], size[1], 1, 1, 1};
  std::copy(size.begin() + 2, size.end(), sizes + 2 + kAxes - (size.size() - 2));
  return plan_channel_sum(dtype_of(dtype), sizes, all, traits_of(device));
}

}  // namespace

void bind_channel_sum(nb::module_& module) {
  nb::class_<ChannelSumPlan>(module, "ChannelSum", "How a GPU sums a tensor over everything but its channels.")
      .def_prop_ro("workspace_bytes", [](const ChannelSumPlan& plan) { return plan.workspace_bytes; })
      .def("explain", [](const ChannelSumPlan& plan) {
        nb::dict told;
        told["rows_of"] = plan.shape.channels_inner ? "channels" : "pixels";
        told["piece"] = plan.shape.piece;
        told["shares"] = plan.shape.shares;
        told["grid"] = std::int64_t(plan.shape.across) * plan.shape.shares;
        told["workspace_bytes"] = plan.workspace_bytes;
        return told;
      });
  module.def(
      "cuda_channel_sum", &plan, "size"_a, "strides"_a, "dtype"_a, "device"_a.none(),
      "How a GPU sums (N, C, *spatial) over everything but C, the gradient of a bias; `device` is an entry of "
      "cuda_devices(), None an H200. None for tensors whose neighbours in memory are neither pixels of a channel "
      "nor channels of a pixel, or that have 2^31 pixels.");
  module.def(
      "simulate_channel_sum",
      [](const ChannelSumPlan& plan, std::uintptr_t source, std::uintptr_t result, std::uintptr_t workspace,
         bool backwards) {
        nb::gil_scoped_release release;
        simulator::run_channel_sum(plan, reinterpret_cast<const void*>(source), reinterpret_cast<void*>(result),
                                   reinterpret_cast<void*>(workspace), backwards);
      },
      "plan"_a, "source"_a, "result"_a, "workspace"_a, "backwards"_a = false,
      "Sums on the host through the kernel's code, thread by thread, in either order.");
#ifdef CONVT_WITH_CUDA
  module.def(
      "cuda_sum_channels",
      [](const ChannelSumPlan& plan, std::uintptr_t source, std::uintptr_t result, std::uintptr_t workspace, int device,
         std::uintptr_t stream) {
        nb::gil_scoped_release release;
        launch_channel_sum(plan, reinterpret_cast<const void*>(source), reinterpret_cast<void*>(result),
                           reinterpret_cast<void*>(workspace), reinterpret_cast<void*>(stream), device);
      },
      "plan"_a, "source"_a, "result"_a, "workspace"_a, "device"_a, "stream"_a,
      "Sums on a stream of a GPU, without waiting for it.");
#endif
}

}  // namespace convt::binding
