#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string_view>

#include "binding/bindings.hpp"
#include "binding/cuda_explain.hpp"
#include "binding/device_traits.hpp"
#include "binding/epilogue.hpp"
#include "binding/problem.hpp"
#include "launch/operator_plan.hpp"
#ifdef CONVT_WITH_CUDA
#include "launch/operator_launch.hpp"
#endif

namespace nb = nanobind;
using namespace nb::literals;

namespace convt::binding {
namespace {

Operand operand_named(const std::string& name) {
  for (int at = 0; at < kOperands; ++at) {
    if (name == name_of(Operand(at))) return Operand(at);
  }
  throw nb::value_error(("operand: " + name + "; legal are tf32, ieee, bfloat16 and float16").c_str());
}

}  // namespace

Strides strides_of(const Integers& sizes, const Integers& strides, const char* name) {
  if (sizes.size() != strides.size() || sizes.size() < 3 || sizes.size() > 2 + kAxes) {
    throw nb::value_error((std::string(name) + ": 3 to 5 sizes and as many strides").c_str());
  }
  Strides made{};
  const std::size_t missing = 2 + kAxes - sizes.size();
  made[0] = strides[0];
  made[1] = strides[1];
  for (std::size_t axis = 2; axis < sizes.size(); ++axis) made[axis + missing] = strides[axis];
  return made;
}

DeviceTraits traits_of(const std::optional<nb::dict>& device) {
  DeviceTraits traits;
  if (!device) return traits;
  const auto read = [&](const char* key, auto& to) {
    if (device->contains(key)) to = nb::cast<std::remove_reference_t<decltype(to)>>((*device)[key]);
  };
  if (device->contains("capability")) {
    const auto [major, minor] = nb::cast<std::pair<int, int>>((*device)["capability"]);
    traits.capability = 10 * major + minor;
  }
#ifdef CONVT_CUDA_ARCHITECTURES
  // Hopper runs what was compiled for older GPUs, unless the build has its own code.
  constexpr std::string_view built = CONVT_CUDA_ARCHITECTURES;
  if (traits.capability == 90 && built.find("90a") == built.npos) traits.capability = 89;
#endif
  read("multiprocessors", traits.multiprocessors);
  read("shared_per_block", traits.shared_per_block);
  read("shared_per_multiprocessor", traits.shared_per_multiprocessor);
  read("l2_bytes", traits.l2_bytes);
  read("clock_ghz", traits.clock_ghz);
  if (device->contains("clock_ghz")) traits.product_clock_ghz = traits.clock_ghz;
  read("product_clock_ghz", traits.product_clock_ghz);
  read("memory_gbs", traits.memory_gbs);
  read("outputs_together", traits.outputs_together);
  read("tensor_copies", traits.tensor_copies);
  return traits;
}

namespace {

OperatorPlan plan(const std::string& op, const Integers& input_size, const Integers& input_strides,
                  const Integers& weight_size, const Integers& weight_strides, std::optional<std::int64_t> bias_stride,
                  const Integers& output_strides, const std::string& dtype, const std::string& precision,
                  const Integers& stride, const Integers& padding, const Integers& output_padding, std::int64_t groups,
                  const Integers& dilation, const std::optional<nb::dict>& device,
                  const std::optional<std::string>& kernel) {
  Request request;
  request.op = operator_of(op);
  request.input = strides_of(input_size, input_strides, "input");
  request.filter = strides_of(weight_size, weight_strides, "weight");
  request.output = strides_of(input_size, output_strides, "output");
  TorchTensor weight;
  weight.rank = int(weight_size.size());
  std::copy(weight_size.begin(), weight_size.end(), weight.sizes);
  if (input_size.size() != weight_size.size()) throw nb::value_error("input and weight need as many axes");
  request.problem = problem_of(input_size.data(), weight, stride, padding, output_padding, groups, dilation);
  request.dtype = dtype_of(dtype);
  if (precision != "ieee" && precision != "tf32") {
    throw nb::value_error(("precision: " + precision + "; legal are ieee and tf32").c_str());
  }
  request.precision = precision == "tf32" ? Precision::tf32 : Precision::ieee;
  request.has_bias = bias_stride.has_value();
  request.bias_stride = bias_stride.value_or(0);
  const DeviceTraits traits = traits_of(device);
  nb::gil_scoped_release release;
  return plan_operator(request, traits, kernel);
}

}  // namespace

void bind_cuda(nb::module_& module) {
  nb::class_<OperatorPlan>(module, "CudaPlan",
                           "How the CUDA kernels compute one call of an operator: a value without pointers.")
      .def_prop_ro("kernel", &OperatorPlan::kernel)
      .def_prop_ro("config", &OperatorPlan::config)
      .def_prop_ro("workspace_bytes", &OperatorPlan::workspace_bytes)
      .def_prop_ro("predicted_us", &OperatorPlan::predicted_us)
      .def("explain", &explain, "Everything that `convt explain` prints, as plain values.");
  module.def(
      "cuda_configs",
      [](const std::string& op, const std::optional<std::string>& operand) {
        std::vector<std::string> names;
        const std::optional<Operand> only = operand ? std::optional(operand_named(*operand)) : std::nullopt;
        const auto add = [&](const auto& configs) {
          for (const auto& config : configs) {
            if (!only || config.has(*only)) names.push_back(name_of(config));
          }
        };
        if (operator_of(op) == Operator::grad_weight) {
          add(weight_configs());
          add(outer_configs());
        } else {
          add(gemm_configs());
        }
        return names;
      },
      "operator"_a = "forward", "operand"_a = nb::none(),
      "The configurations of an operator's implicit GEMM, by name; those alone that multiply an operand (tf32, ieee, "
      "bfloat16 or float16) where it is given.");
  module.def(
      "cuda_plan", &plan, "operator"_a, "input_size"_a, "input_strides"_a, "weight_size"_a, "weight_strides"_a,
      "bias_stride"_a.none(), "output_strides"_a, "dtype"_a, "precision"_a, "stride"_a, "padding"_a, "output_padding"_a,
      "groups"_a, "dilation"_a, "device"_a.none(), "kernel"_a.none(),
      "Chooses how an operator is computed on a GPU: `operator` is forward, grad_input or grad_weight, sizes and "
      "strides are of the tensors in those places; `device` is an entry of cuda_devices(), None an H200; "
      "`kernel` forces a family or a configuration of the implicit GEMM. Needs no GPU. ValueError with the "
      "reason when the forced one cannot.");
#ifdef CONVT_WITH_CUDA
  module.def(
      "cuda_run",
      [](const OperatorPlan& plan, std::uintptr_t input, std::uintptr_t weight, std::uintptr_t bias,
         std::uintptr_t output, std::uintptr_t workspace, int device, std::uintptr_t stream, nb::handle epilogue) {
        const Program program = program_of_pointers(epilogue, plan.request.dtype);
        const Pointers pointers{reinterpret_cast<void*>(input),
                                reinterpret_cast<void*>(weight),
                                reinterpret_cast<const void*>(bias),
                                reinterpret_cast<void*>(output),
                                reinterpret_cast<void*>(workspace),
                                reinterpret_cast<void*>(stream),
                                &program};
        nb::gil_scoped_release release;
        launch_operator(plan, pointers, device);
      },
      "plan"_a, "input"_a, "weight"_a, "bias"_a, "output"_a, "workspace"_a, "device"_a, "stream"_a,
      "epilogue"_a.none() = nb::none(),
      "Computes a call on a stream of a GPU, without waiting for it. epilogue, of the forward: steps as in forward(), "
      "an "
      "operand being (data_ptr, dtype, strides over the five axes of the output in elements, zeros among them).");
#endif
}

}  // namespace convt::binding
