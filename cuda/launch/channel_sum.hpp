#pragma once

#include <optional>

#include "kernel/channel_sum.hpp"
#include "launch/request.hpp"

namespace convt {

// How the gradient of a bias is summed: in one launch, or in shares by a first and these by a second.
struct ChannelSumPlan {
  DType dtype = DType::float32;
  ChannelSumShape shape{};
  ChannelSumShape of_shares{};        // of accumulators, when there are several
  std::int64_t workspace_bytes = 0;
};

// Of (N, C, D, H, W). None for tensors whose neighbours in memory are neither pixels of a channel nor channels of a pixel, or
// that have more than 2^31 of them.
std::optional<ChannelSumPlan> plan_channel_sum(DType dtype, const std::int64_t (&sizes)[2 + kAxes],
                                               const Strides& strides, const DeviceTraits& device);

// The first launch's shape for a tensor at an address, whose pieces may have to be smaller.
ChannelSumShape align_channel_sum(const ChannelSumPlan& plan, const void* source);

// What sums a call: the tensor itself, and what shares it left.
template <class S>
struct ChannelSumCall {
  using T = Accumulator<S>;
  typename ChannelSum<S, S>::Params first;
  typename ChannelSum<T, S>::Params second;
  bool shared;

  ChannelSumCall(const ChannelSumPlan& plan, const void* source, void* result, void* workspace)
      : first{align_channel_sum(plan, source), static_cast<const S*>(source), nullptr, static_cast<S*>(result)},
        second{plan.of_shares, static_cast<const T*>(workspace), nullptr, static_cast<S*>(result)},
        shared(plan.shape.shares > 1) {
    if (shared) first.partial = static_cast<T*>(workspace);
  }
};

// On a stream of `device`; asynchronous. The caller's current device is the same afterwards. Throws std::runtime_error.
void launch_channel_sum(const ChannelSumPlan& plan, const void* source, void* result, void* workspace, void* stream,
                        int device);

}  // namespace convt
