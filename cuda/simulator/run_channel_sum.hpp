#pragma once

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

#include "launch/channel_sum.hpp"

namespace convt::simulator {

// The order of ChannelSum::operator(). A host reads from anywhere: what a GPU may is asked here.
template <class S, class Result>
void run_channel_sum(const typename ChannelSum<S, Result>::Params& params, bool backwards) {
  using Kernel = ChannelSum<S, Result>;
  using T = typename Kernel::T;
  const ChannelSumShape& shape = params.shape;
  const auto check = [&](std::int64_t at) {
    if (at * std::int64_t(sizeof(S)) % shape.piece != 0) throw std::runtime_error("global memory: a misaligned piece");
  };
  check(std::int64_t(reinterpret_cast<std::uintptr_t>(params.source) / sizeof(S)));
  check(shape.row);
  if (shape.rows > 1) check(shape.strides[0]);
  if (!shape.channels_inner && shape.channels > 1) check(shape.strides[1]);
  std::vector<T> shared(Kernel::kShared);
  const auto each_thread = [&](auto visit) {
    for (int at = 0; at < Kernel::kThreads; ++at) visit(backwards ? Kernel::kThreads - 1 - at : at);
  };
  for (std::int32_t block = 0; block < shape.across * shape.shares; ++block) {
    std::fill(shared.begin(), shared.end(), std::numeric_limits<T>::quiet_NaN());
    each_thread([&](int thread) { Kernel::gather(params, block, thread, shared.data()); });
    each_thread([&](int thread) { Kernel::fold(params, thread, shared.data()); });
    each_thread([&](int thread) { Kernel::store(params, block, thread, shared.data()); });
  }
}

inline void run_channel_sum(const ChannelSumPlan& plan, const void* source, void* result, void* workspace,
                            bool backwards) {
  with_storage(plan.dtype, [&](auto storage) {
    using S = decltype(storage);
    const ChannelSumCall<S> call(plan, source, result, workspace);
    run_channel_sum<S, S>(call.first, backwards);
    if (call.shared) run_channel_sum<Accumulator<S>, S>(call.second, backwards);
  });
}

}  // namespace convt::simulator
