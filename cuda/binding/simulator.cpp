#include "simulator/simulator.hpp"

#include <nanobind/nanobind.h>

#include <string>

#include "binding/bindings.hpp"
#include "binding/epilogue.hpp"
#include "launch/operator_plan.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace convt::binding {

void bind_simulator(nb::module_& module) {
  module.def(
      "simulate",
      [](const OperatorPlan& plan, std::uintptr_t input, std::uintptr_t weight, std::uintptr_t bias,
         std::uintptr_t output, std::uintptr_t workspace, int order, bool late_copies, int skipped_barrier,
         nb::handle epilogue) {
        const Program program = program_of_pointers(epilogue, plan.request.dtype);
        const Pointers pointers{reinterpret_cast<void*>(input),
                                reinterpret_cast<void*>(weight),
                                reinterpret_cast<const void*>(bias),
                                reinterpret_cast<void*>(output),
                                reinterpret_cast<void*>(workspace),
                                nullptr,
                                &program};
        const auto* gemm = std::get_if<GemmPlan>(&plan.chosen);
        const auto* product = std::get_if<WeightPlan>(&plan.chosen);
        if (gemm == nullptr && product == nullptr) {
          const std::string kernel = plan.kernel();
          throw nb::value_error(
              ("plan: " + kernel + "; only implicit_gemm is simulated, run_direct runs this").c_str());
        }
        simulator::Counters counted;
        {
          nb::gil_scoped_release release;
          const simulator::Schedule schedule{order, late_copies, skipped_barrier};
          counted =
              gemm ? simulator::simulate(*gemm, pointers, schedule) : simulator::simulate(*product, pointers, schedule);
        }
        nb::dict told;
        told["matrix_loads"] = counted.matrix_loads;
        told["bank_conflicts"] = counted.bank_conflicts;
        told["products"] = counted.products;
        told["barriers"] = counted.barriers;
        return told;
      },
      "plan"_a, "input"_a, "weight"_a, "bias"_a, "output"_a, "workspace"_a, "order"_a = 0, "late_copies"_a = false,
      "skipped_barrier"_a = -1, "epilogue"_a.none() = nb::none(),
      "Computes a call on the host through the code of the implicit GEMM, thread block by thread block. order: "
      "0 to 2, "
      "how warps take turns; late_copies: asynchronous copies happen when waited for; skipped_barrier: left out; "
      "epilogue: as in cuda_run().");
}

}  // namespace convt::binding
