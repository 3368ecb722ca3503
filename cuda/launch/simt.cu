#include <type_traits>

#include "kernel/simt.hpp"
#include "launch/device_kernel.cuh"
#include "launch/simt.hpp"

namespace convt {
namespace {

// Calls `use` with the type of the kernel.
template <class S, class Use>
void use_operator(Operator op, const Use& use) {
  switch (op) {
    case Operator::forward:
      return use(std::type_identity<Simt<S, Operator::forward>>{});
    case Operator::grad_input:
      return use(std::type_identity<Simt<S, Operator::grad_input>>{});
    case Operator::grad_weight:
      return use(std::type_identity<Simt<S, Operator::grad_weight>>{});
  }
}

template <class Use>
void use_kernel(const SimtPlan& plan, const Use& use) {
  with_storage(plan.dtype, [&]<class S>(std::type_identity<S>) { use_operator<S>(plan.op, use); });
}

}  // namespace

void launch_simt(const SimtPlan& plan, const Pointers& pointers) {
  const SimtGrid grid = simt_grid(plan.grid);
  use_kernel(plan, [&](auto kernel) {
    launch_kernel<typename decltype(kernel)::type>(
        dim3(grid.x, grid.y), plan.threads, plan.shared_bytes, pointers.stream,
        {plan.shape, simt_operands(plan, pointers), program_as<typename decltype(kernel)::type::T>(pointers.program)},
        "launching the simt kernel");
  });
  if (plan.shape.splits == 1) return;
  launch_sum_partials(plan.sum, plan.dtype, pointers.workspace, pointers.filter, pointers.stream);
}

const void* simt_function(const SimtPlan& plan) {
  const void* function = nullptr;
  use_kernel(plan, [&](auto kernel) {
    function = reinterpret_cast<const void*>(&device_kernel<typename decltype(kernel)::type>);
  });
  return function;
}

}  // namespace convt
