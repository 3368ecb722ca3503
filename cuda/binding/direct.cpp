#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "binding/bindings.hpp"
#include "binding/direct_depthwise.hpp"
#include "binding/epilogue.hpp"
#include "binding/problem.hpp"
#include "launch/simt.hpp"
#include "simulator/run_direct.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace convt::binding {
namespace {

Strides strides_of(const TorchTensor& tensor) {
  const host::TensorView view = view_of(tensor);
  Strides strides;
  for (int i = 0; i < 2 + kAxes; ++i) strides[i] = view.strides[i];
  return strides;
}

// All ones are a NaN in every type.
std::vector<Vector16> poisoned(std::int64_t bytes) {
  return std::vector<Vector16>(std::size_t(bytes + 15) / 16, Vector16{{~0u, ~0u, ~0u, ~0u}});
}

// Plans a CUDA-core kernel for CPU tensors and runs its own functions on the host.
nb::dict run_direct(const std::string& family, nb::handle input, nb::handle weight, nb::handle bias, nb::handle output,
                    const Integers& stride, const Integers& padding, const Integers& output_padding,
                    std::int64_t groups, const Integers& dilation, const std::string& op, bool backwards,
                    bool unaligned, bool dry, nb::handle epilogue) {
  const TorchTensor x = host_tensor(input, "input"), w = host_tensor(weight, "weight", x),
                    y = host_tensor(output, "output", x);
  Request request;
  request.op = operator_of(op);
  request.problem = problem_of(x.sizes, w, stride, padding, output_padding, groups, dilation);
  require_sizes(y, "output", request.problem, request.problem.out_channels, &Axis::output);
  request.dtype = x.dtype;
  request.input = strides_of(x);
  request.filter = strides_of(w);
  request.output = strides_of(y);
  DirectOperands data{x.data, w.data, nullptr, y.data};
  if (!bias.is_none()) {
    const TorchTensor b = host_tensor(bias, "bias", x, 1);
    if (b.sizes[0] != request.problem.out_channels) {
      throw nb::value_error("bias must have one element per output channel");
    }
    request.has_bias = true;
    request.bias_stride = b.strides[0];
    data.bias = b.data;
  }
  const Program program = program_of(epilogue, y);
  const auto refuse = [&](const std::string& reason) { throw nb::value_error((family + ": " + reason).c_str()); };
  nb::dict told;
  if (family == "depthwise") {
    told = run_depthwise(request, data, program, backwards, unaligned, dry);
  } else if (family == "simt") {
    const auto planned = plan_simt(request, DeviceTraits{});
    if (const auto* reason = std::get_if<std::string>(&planned)) refuse(*reason);
    const SimtPlan& plan = std::get<SimtPlan>(planned);
    told["config"] = plan.config;
    told["predicted_us"] = plan.cost.total();
    told["bytes_predicted"] = plan.bytes_predicted;
    told["grid"] = plan.grid;
    told["threads"] = plan.threads;
    told["shared_bytes"] = plan.shared_bytes;
    told["splits"] = plan.shape.splits;
    told["workspace_bytes"] = plan.workspace_bytes;
    const nb::gil_scoped_release release;
    if (!dry) {
      std::vector<Vector16> workspace = poisoned(plan.workspace_bytes);
      simulator::run_simt(plan, {x.data, w.data, data.bias, y.data, workspace.data(), nullptr, &program}, backwards);
    }
  } else {
    refuse("not a family; legal: depthwise, simt");
  }
  return told;
}

}  // namespace

void bind_direct(nb::module_& module) {
  module.def(
      "run_direct", &run_direct, "family"_a, "input"_a, "weight"_a, "bias"_a.none(), "output"_a, "stride"_a,
      "padding"_a, "output_padding"_a, "groups"_a, "dilation"_a, nb::kw_only(), "operator"_a = "forward",
      "backwards"_a = false, "unaligned"_a = false, "dry"_a = false, "epilogue"_a.none() = nb::none(),
      "Plans the depthwise or simt CUDA kernel for an H200 and runs its functions thread by thread on the host, "
      "CPU tensors in and out; returns what the plan says. `operator` is forward, grad_input or grad_weight, and "
      "writes output, input or weight. ValueError with the reason when it cannot. `dry`: the plan alone. "
      "`epilogue`: as in forward().");
}

}  // namespace convt::binding
