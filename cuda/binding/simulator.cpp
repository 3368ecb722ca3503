#include "simulator/simulator.hpp"

#include <nanobind/nanobind.h>

#include <string>

#include "binding/bindings.hpp"
#include "binding/epilogue.hpp"
#include "launch/operator_plan.hpp"
#include "simulator/run_pack.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace convt::binding {
namespace {

nb::list step_order(const GemmPlan& plan) {
  const char* const tables = plan.tables.data();
  const TableLayout& layout = plan.params.table;
  const auto* const shifts = reinterpret_cast<const ShiftRecord*>(tables + layout.shifts);
  nb::list blocks;
  for (std::int32_t at = 0; at < plan.params.phase_blocks; ++at) {
    const PhaseBlock& block = reinterpret_cast<const PhaseBlock*>(tables)[at];
    nb::list phases, groups;
    for (std::int32_t slot = 0; slot < block.slots; ++slot) {
      phases.append(reinterpret_cast<const std::int32_t*>(tables + layout.phases)[block.first_phase + slot]);
    }
    for (std::int32_t which = 0; which < block.groups; ++which) {
      const ShiftGroup& group = reinterpret_cast<const ShiftGroup*>(tables + layout.groups)[block.first_group + which];
      nb::list steps;
      for (std::int32_t step = 0; step < group.shifts; ++step) {
        const ShiftRecord& record = shifts[group.first_shift + step];
        steps.append(nb::make_tuple(nb::make_tuple(record.shift[0], record.shift[1], record.shift[2]), record.phase,
                                    record.pixel_offset, record.row_mask));
      }
      groups.append(steps);
    }
    blocks.append(nb::make_tuple(phases, groups));
  }
  return blocks;
}

}  // namespace

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
        const auto* outer = std::get_if<OuterPlan>(&plan.chosen);
        if (gemm == nullptr && product == nullptr && outer == nullptr) {
          const std::string kernel = plan.kernel();
          throw nb::value_error(
              ("plan: " + kernel + "; only implicit_gemm is simulated, run_direct runs this").c_str());
        }
        simulator::Counters counted;
        {
          nb::gil_scoped_release release;
          const simulator::Schedule schedule{order, late_copies, skipped_barrier};
          counted = gemm      ? simulator::simulate(*gemm, pointers, schedule)
                    : product ? simulator::simulate(*product, pointers, schedule)
                              : simulator::simulate(*outer, pointers, schedule);
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
  module.def(
      "simulate_packing",
      [](const OperatorPlan& plan, std::uintptr_t weight, std::uintptr_t workspace, bool backwards) {
        const auto* gemm = std::get_if<GemmPlan>(&plan.chosen);
        if (gemm == nullptr) {
          const std::string kernel = plan.kernel();
          throw nb::value_error(
              ("plan: " + kernel + "; only forward and grad_input of implicit_gemm pack a filter").c_str());
        }
        const PackParams pack =
            bind(*gemm, {.filter = reinterpret_cast<void*>(weight), .workspace = reinterpret_cast<void*>(workspace)})
                .pack;
        {
          nb::gil_scoped_release release;
          simulator::run_pack(*gemm, pack, backwards);
        }
        nb::dict told;
        told["offset"] = gemm->filter_offset;
        told["staged_bytes"] = pack.staged_levels > 0 ? pack.shared.bytes - pack.shared.filter : 0;
        told["width"] = pack.width;
        told["pieces"] = pack.pieces;
        told["ranges"] = pack.ranges;
        told["job_planes"] = 1 << pack.job_planes_log2;
        told["shared_bytes"] = pack.shared.bytes;
        told["jobs"] = pack.jobs;
        told["grid"] = pack.grid();
        told["order"] = nb::make_tuple(pack.order.phases, pack.order.units);
        told["blocks"] = step_order(*gemm);
        return told;
      },
      "plan"_a, "weight"_a, "workspace"_a, "backwards"_a = false,
      "Packs the filter of a forward or grad_input into a workspace, at the byte `offset`. `order` and `blocks` say in "
      "what order: W phases and units of 16 rows; of every phase block its slots' phases, and its shift groups' steps "
      "as (shift, phase of the input, pixel offset, row mask).");
}

}  // namespace convt::binding
