#include <type_traits>

#include "kernel/simt.hpp"
#include "launch/device_kernel.cuh"
#include "launch/simt.hpp"

namespace convt {
namespace {

// Calls `use` with the type of the kernel.
template <class Use>
void use_kernel(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::float32:
      return use(std::type_identity<Simt<float>>{});
    case DType::float64:
      return use(std::type_identity<Simt<double>>{});
    case DType::float16:
      return use(std::type_identity<Simt<Float16>>{});
    case DType::bfloat16:
      return use(std::type_identity<Simt<BFloat16>>{});
  }
}

}  // namespace

void launch_simt(const SimtPlan& plan, const Pointers& pointers) {
  const SimtGrid grid = simt_grid(plan.grid);
  use_kernel(plan.dtype, [&](auto kernel) {
    launch_kernel<typename decltype(kernel)::type>(
        dim3(grid.x, grid.y), plan.threads, plan.shared_bytes, pointers.stream,
        {plan.shape, {pointers.input, pointers.filter, pointers.bias, pointers.output}}, "launching the simt kernel");
  });
}

const void* simt_function(const SimtPlan& plan) {
  const void* function = nullptr;
  use_kernel(plan.dtype, [&](auto kernel) {
    function = reinterpret_cast<const void*>(&device_kernel<typename decltype(kernel)::type>);
  });
  return function;
}

}  // namespace convt
