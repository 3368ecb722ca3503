#include "launch/depthwise_gradient.hpp"

#include <iterator>
#include <type_traits>

#include "kernel/depthwise_grad_input.hpp"
#include "kernel/depthwise_grad_weight.hpp"
#include "launch/device_kernel.cuh"
#include "launch/sum_partials.hpp"

namespace convt {
namespace {

template <class S, int kPitch, int kTaps = 0, class Use>
void use_taps(int taps, const Use& use) {
  if constexpr (kTaps < int(std::size(kDepthwiseTapSets))) {
    if (taps != kTaps) return use_taps<S, kPitch, kTaps + 1>(taps, use);
    constexpr DepthwiseTapSet set = kDepthwiseTapSets[kTaps];
    use(std::type_identity<S>{}, std::type_identity<DepthwiseGradWeight<S, kPitch, set.columns, set.rows>>{});
  }
}

template <class S, int kPitch, class Use>
void use_pitch(const DepthwisePlan& plan, const DepthwiseGradientLaunch& launch, const Use& use) {
  if (plan.op == Operator::grad_weight) return use_taps<S, kPitch>(launch.taps, use);
  use(std::type_identity<S>{}, std::type_identity<DepthwiseGradInput<S, kPitch>>{});
}

template <class S, class Use>
void use_kernel(const DepthwisePlan& plan, const DepthwiseGradientLaunch& launch, const Use& use) {
  switch (launch.shape.pitch) {
    case kDepthwiseRowsPitch:
      return use_pitch<S, kDepthwiseRowsPitch>(plan, launch, use);
    case kDepthwiseChannelsPitch:
      return use_pitch<S, kDepthwiseChannelsPitch>(plan, launch, use);
    default:
      return use_pitch<S, kDepthwiseAnyPitch>(plan, launch, use);
  }
}

// Calls `use` with the type of the tensors and with that of the kernel.
template <class Use>
void use_kernel(const DepthwisePlan& plan, const DepthwiseGradientLaunch& launch, const Use& use) {
  with_storage(plan.dtype, [&]<class S>(std::type_identity<S>) { use_kernel<S>(plan, launch, use); });
}

}  // namespace

void launch_depthwise_gradient(const DepthwisePlan& plan, const DepthwiseGradientLaunch& launch,
                               const Pointers& pointers) {
  const dim3 grid(static_cast<unsigned>(launch.grid));
  use_kernel(plan, launch, [&](auto type, auto kernel) {
    using S = typename decltype(type)::type;
    using Kernel = typename decltype(kernel)::type;
    const auto start = [&](const typename Kernel::Params& params) {
      launch_kernel<Kernel>(grid, launch.threads, launch.shared_bytes, pointers.stream, params,
                            "launching a depthwise gradient");
    };
    if constexpr (requires(typename Kernel::Params params) { params.partial; }) {
      start({launch.shape, pointers.input, pointers.output, static_cast<typename Kernel::T*>(pointers.workspace),
             static_cast<S*>(pointers.filter)});
      if (launch.shape.splits == 1) return;
      launch_sum_partials(launch.sum, plan.dtype, pointers.workspace, pointers.filter, pointers.stream);
    } else {
      start({launch.shape, pointers.filter, pointers.output, pointers.input});
    }
  });
}

const void* depthwise_gradient_function(const DepthwisePlan& plan, const DepthwiseGradientLaunch& launch) {
  const void* function = nullptr;
  use_kernel(plan, launch, [&](auto, auto kernel) {
    function = reinterpret_cast<const void*>(&device_kernel<typename decltype(kernel)::type>);
  });
  return function;
}

}  // namespace convt
