#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "binding/bindings.hpp"
#include "binding/epilogue.hpp"
#include "binding/problem.hpp"
#include "host/isa.hpp"
#include "host/operators.hpp"
#include "host/parallel.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace convt::binding {
namespace {

void forward(nb::handle input, nb::handle weight, nb::handle bias, nb::handle output, const Integers& stride,
             const Integers& padding, const Integers& output_padding, std::int64_t groups, const Integers& dilation,
             nb::handle epilogue) {
  const TorchTensor x = host_tensor(input, "input"), w = host_tensor(weight, "weight", x),
                    y = host_tensor(output, "output", x);
  const Problem problem = problem_of(x.sizes, w, stride, padding, output_padding, groups, dilation);
  require_sizes(y, "output", problem, problem.out_channels, &Axis::output);
  host::TensorView bias_view;
  if (!bias.is_none()) {
    const TorchTensor b = host_tensor(bias, "bias", x, 1);
    if (b.sizes[0] != problem.out_channels) throw nb::value_error("bias must have one element per output channel");
    bias_view = channel_view(b);
  }
  const Program program = program_of(epilogue, y);
  nb::gil_scoped_release release;
  host::forward(problem, x.dtype, view_of(x), view_of(w), bias.is_none() ? nullptr : &bias_view, view_of(y), &program);
}

void grad_input(nb::handle grad_output, nb::handle weight, nb::handle grad_input, const Integers& stride,
                const Integers& padding, const Integers& output_padding, std::int64_t groups,
                const Integers& dilation) {
  const TorchTensor gy = host_tensor(grad_output, "grad_output"), w = host_tensor(weight, "weight", gy),
                    gx = host_tensor(grad_input, "grad_input", gy);
  const Problem problem = problem_of(gx.sizes, w, stride, padding, output_padding, groups, dilation);
  require_sizes(gy, "grad_output", problem, problem.out_channels, &Axis::output);
  nb::gil_scoped_release release;
  host::grad_input(problem, gy.dtype, view_of(gy), view_of(w), view_of(gx));
}

void grad_weight(nb::handle grad_output, nb::handle input, nb::handle grad_weight, const Integers& stride,
                 const Integers& padding, const Integers& output_padding, std::int64_t groups,
                 const Integers& dilation) {
  const TorchTensor gy = host_tensor(grad_output, "grad_output"), x = host_tensor(input, "input", gy),
                    gw = host_tensor(grad_weight, "grad_weight", gy);
  const Problem problem = problem_of(x.sizes, gw, stride, padding, output_padding, groups, dilation);
  require_sizes(gy, "grad_output", problem, problem.out_channels, &Axis::output);
  nb::gil_scoped_release release;
  host::grad_weight(problem, gy.dtype, view_of(gy), view_of(x), view_of(gw));
}

void grad_bias(nb::handle grad_output, nb::handle grad_bias) {
  const TorchTensor gy = host_tensor(grad_output, "grad_output"), gb = host_tensor(grad_bias, "grad_bias", gy, 1);
  if (gb.sizes[0] != gy.sizes[1]) throw nb::value_error("grad_bias must have one element per channel of grad_output");
  nb::gil_scoped_release release;
  host::grad_bias(gy.dtype, view_of(gy), channel_view(gb));
}

}  // namespace

void bind_host(nb::module_& module) {
  module.def(
      "forward", &forward, "input"_a, "weight"_a, "bias"_a.none(), "output"_a, "stride"_a, "padding"_a,
      "output_padding"_a, "groups"_a, "dilation"_a, "epilogue"_a.none() = nb::none(),
      "output = transposed convolution of input, on the CPU. epilogue: up to 8 steps (name, a, b, operand) that "
      "follow on the accumulators, names as in epilogue_operations(); operand is None for the scalar a, or a "
      "tensor of sizes (C,) or the output's, of the output's dtype or float32; at most 4. clamp: a is the least, "
      "b the most; leaky_relu: a is the negative slope.");
  module.def(
      "epilogue_operations",
      [] { return std::vector<std::string>(std::begin(kPointwiseNames), std::end(kPointwiseNames)); },
      "Names of the operations that a step of an epilogue may have.");
  module.def("grad_input", &grad_input, "grad_output"_a, "weight"_a, "grad_input"_a, "stride"_a, "padding"_a,
             "output_padding"_a, "groups"_a, "dilation"_a,
             "grad_input = derivative with respect to input, on the CPU.");
  module.def("grad_weight", &grad_weight, "grad_output"_a, "input"_a, "grad_weight"_a, "stride"_a, "padding"_a,
             "output_padding"_a, "groups"_a, "dilation"_a,
             "grad_weight = derivative with respect to weight, on the CPU.");
  module.def("grad_bias", &grad_bias, "grad_output"_a, "grad_bias"_a,
             "grad_bias = sum of grad_output per channel, on the CPU.");
  module.def("num_threads", &host::num_threads, "Threads that the CPU backend uses: torch's number.");
  module.def("isa", &host::isa, "Instruction set in use on the CPU.");
  module.def("isas", &host::usable_isas, "Instruction sets that can be used on this machine, best first.");
  module.def("set_isa", &host::set_isa, "name"_a, "Uses another of isas().");
  module.def("set_poison", &host::set_poison, "on"_a, "Scratch memory of the CPU backend starts as NaN (for tests).");
}

}  // namespace convt::binding
