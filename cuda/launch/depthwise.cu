#include <type_traits>

#include "kernel/depthwise.hpp"
#include "launch/depthwise_gradient.hpp"
#include "launch/device_kernel.cuh"

namespace convt {
namespace {

template <class S, class Use>
void use_kernel(DepthwiseLanes lanes, const Use& use) {
  switch (lanes) {
    case DepthwiseLanes::rows:
      return use(std::type_identity<DepthwiseRows<S>>{});
    case DepthwiseLanes::channels:
      return use(std::type_identity<DepthwiseChannels<S, 1>>{});
    case DepthwiseLanes::channel_vectors:
      return use(std::type_identity<DepthwiseChannels<S, kPacked<S>>>{});
  }
}

// Calls `use` with the type of the kernel.
template <class Use>
void use_kernel(DType dtype, DepthwiseLanes lanes, const Use& use) {
  with_storage(dtype, [&]<class S>(std::type_identity<S>) { use_kernel<S>(lanes, use); });
}

}  // namespace

void launch_depthwise(const DepthwisePlan& plan, const Pointers& pointers) {
  const auto odd = [](const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0; };
  const auto& launch = odd(pointers.input) || odd(pointers.output) ? plan.unaligned : plan.launch;
  if (const auto* gradient = std::get_if<DepthwiseGradientLaunch>(&launch)) {
    return launch_depthwise_gradient(plan, *gradient, pointers);
  }
  const DepthwiseLaunch& chosen = std::get<DepthwiseLaunch>(launch);
  use_kernel(plan.dtype, chosen.lanes, [&](auto kernel) {
    launch_kernel<typename decltype(kernel)::type>(dim3(unsigned(chosen.grid)), chosen.threads, chosen.shared_bytes,
                                                   pointers.stream,
                                                   {chosen.shape,
                                                    {pointers.input, pointers.filter, pointers.bias, pointers.output},
                                                    program_as<typename decltype(kernel)::type::T>(pointers.program)},
                                                   "launching the depthwise kernel");
  });
}

const void* depthwise_function(const DepthwisePlan& plan) {
  if (const auto* gradient = std::get_if<DepthwiseGradientLaunch>(&plan.launch)) {
    return depthwise_gradient_function(plan, *gradient);
  }
  const void* function = nullptr;
  use_kernel(plan.dtype, std::get<DepthwiseLaunch>(plan.launch).lanes, [&](auto kernel) {
    function = reinterpret_cast<const void*>(&device_kernel<typename decltype(kernel)::type>);
  });
  return function;
}

}  // namespace convt
