#pragma once

#include "launch/channel_sum.hpp"
#include "simulator/host_memory.hpp"

namespace convt::simulator {

// The order of ChannelSum::operator().
template <class S, class Result>
void run_channel_sum(const typename ChannelSum<S, Result>::Params& params, bool backwards) {
  using Kernel = ChannelSum<S, Result>;
  using T = typename Kernel::T;
  const ChannelSumShape& shape = params.shape;
  constexpr std::int64_t bytes = sizeof(S);
  check_piece(shape.piece, reinterpret_cast<std::intptr_t>(params.source));
  check_piece(shape.piece, shape.row * bytes);
  if (shape.rows > 1) check_piece(shape.piece, shape.strides[0] * bytes);
  if (!shape.channels_inner && shape.channels > 1) check_piece(shape.piece, shape.strides[1] * bytes);
  const DirectRun run{std::int64_t(shape.across) * shape.shares, Kernel::kThreads, Kernel::kShared * sizeof(T),
                      backwards};
  PoisonedMemory memory(run.shared_bytes);
  for (std::int32_t block = 0; block < run.blocks; ++block) {
    auto* const shared = reinterpret_cast<T*>(memory.poisoned());
    each_thread(run, [&](int thread) { Kernel::gather(params, block, thread, shared); });
    each_thread(run, [&](int thread) { Kernel::fold(params, thread, shared); });
    each_thread(run, [&](int thread) { Kernel::store(params, block, thread, shared); });
  }
}

inline void run_channel_sum(const ChannelSumPlan& plan, const void* source, void* result, void* workspace,
                            bool backwards) {
  with_storage(plan.dtype, [&]<class S>(std::type_identity<S>) {
    const ChannelSumCall<S> call(plan, source, result, workspace);
    run_channel_sum<S, S>(call.first, backwards);
    if (call.shared) run_channel_sum<Accumulator<S>, S>(call.second, backwards);
  });
}

}  // namespace convt::simulator
