#include "simulator/run_depthwise_gradient.hpp"

#include <iterator>
#include <vector>

#include "simulator/host_memory.hpp"
#include "simulator/run_sum.hpp"

namespace convt::simulator {
namespace {

template <class S, int kPitch>
void run_grad_input(const DirectRun& run, const DepthwiseGradientShape& shape, const DirectOperands& data) {
  using Kernel = DepthwiseGradInput<S, kPitch>;
  const typename Kernel::Params params{shape, data.filter, data.output, const_cast<void*>(data.input)};
  PoisonedMemory memory(run.shared_bytes);
  for (std::int64_t block = 0; block < run.blocks; ++block) {
    char* const shared = memory.poisoned();
    const auto index = std::int32_t(block);
    each_thread(run, [&](int thread) { Kernel::start(params, index, thread, run.threads, shared); });
    each_thread(run, [&](int thread) { Kernel::load(params, index, thread, run.threads, shared); });
    each_thread(run, [&](int thread) { Kernel::compute(params, index, thread, run.threads, shared); });
  }
}

// The order of DepthwiseGradWeight::operator(), and of SumPartials.
template <class S, int kPitch, int kTaps>
void run_grad_weight(const DirectRun& run, const DepthwiseGradientShape& shape, const SumShape& sum,
                     std::int64_t workspace_bytes, const DirectOperands& data) {
  using Kernel = DepthwiseGradWeight<S, kPitch, kDepthwiseTapSets[kTaps].columns, kDepthwiseTapSets[kTaps].rows>;
  using T = Accumulator<S>;
  PoisonedMemory workspace(workspace_bytes), memory(run.shared_bytes);
  T* const partial = reinterpret_cast<T*>(workspace.poisoned());
  S* const result = static_cast<S*>(const_cast<void*>(data.filter));
  const typename Kernel::Params params{shape, data.input, data.output, partial, result};
  std::vector<typename Kernel::Thread> states(run.threads);
  for (std::int64_t block = 0; block < run.blocks; ++block) {
    const auto index = std::int32_t(block);
    each_thread(run, [&](int thread) { Kernel::start(shape, index, thread, states[thread]); });
    const std::int32_t split = Kernel::block_of(shape, index).split, end = Kernel::first_tile(shape, split + 1);
    char* const shared = memory.poisoned();
    std::int32_t tile = Kernel::first_tile(shape, split);
    each_thread(run, [&](int thread) { Kernel::write_lines(shape, index, tile, thread, run.threads, shared); });
    for (; tile < end; ++tile) {
      each_thread(run, [&](int thread) { Kernel::load(params, index, tile, thread, run.threads, shared); });
      each_thread(run, [&](int thread) {
        if (tile + 1 < end) Kernel::write_lines(shape, index, tile + 1, thread, run.threads, shared);
        Kernel::add_tile(params, index, tile, shared, states[thread]);
      });
    }
    memory.poisoned();
    each_thread(run, [&](int thread) { Kernel::put(shape, thread, shared, states[thread]); });
    for (std::int32_t lanes = shape.lanes / 2; lanes > 0; lanes /= 2) {
      each_thread(run, [&](int thread) { Kernel::halve(shape, lanes, thread, run.threads, shared); });
    }
    each_thread(run, [&](int thread) { Kernel::store(params, index, thread, run.threads, shared); });
  }
  if (shape.splits == 1) return;
  run_sum<S>({sum, partial, result});
}

template <class S, int kPitch>
void run_grad_weight(const DirectRun& run, int taps, const DepthwiseGradientShape& shape, const SumShape& sum,
                     std::int64_t workspace_bytes, const DirectOperands& data) {
  static_assert(std::size(kDepthwiseTapSets) == 3, "a case for each");
  switch (taps) {
    case 0:
      return run_grad_weight<S, kPitch, 0>(run, shape, sum, workspace_bytes, data);
    case 1:
      return run_grad_weight<S, kPitch, 1>(run, shape, sum, workspace_bytes, data);
    default:
      return run_grad_weight<S, kPitch, 2>(run, shape, sum, workspace_bytes, data);
  }
}

template <class S>
void run_grad_input_type(const DirectRun& run, const DepthwiseGradientShape& shape, const DirectOperands& data) {
  if (shape.pitch == kDepthwiseAnyPitch) return run_grad_input<S, kDepthwiseAnyPitch>(run, shape, data);
  if (shape.pitch == kDepthwiseChannelsPitch) return run_grad_input<S, kDepthwiseChannelsPitch>(run, shape, data);
  run_grad_input<S, kDepthwiseRowsPitch>(run, shape, data);
}
template <class S>
void run_grad_weight_type(const DirectRun& run, int taps, const DepthwiseGradientShape& shape, const SumShape& sum,
                          std::int64_t bytes, const DirectOperands& data) {
  if (shape.pitch == kDepthwiseAnyPitch) {
    return run_grad_weight<S, kDepthwiseAnyPitch>(run, taps, shape, sum, bytes, data);
  }
  if (shape.pitch == kDepthwiseChannelsPitch)
    return run_grad_weight<S, kDepthwiseChannelsPitch>(run, taps, shape, sum, bytes, data);
  run_grad_weight<S, kDepthwiseRowsPitch>(run, taps, shape, sum, bytes, data);
}

}  // namespace

void run_depthwise_grad_input(const DirectRun& run, DType dtype, const DepthwiseGradientShape& shape,
                              const DirectOperands& data) {
  with_storage(dtype, [&]<class S>(std::type_identity<S>) { run_grad_input_type<S>(run, shape, data); });
}

void run_depthwise_grad_weight(const DirectRun& run, DType dtype, int taps, const DepthwiseGradientShape& shape,
                               const SumShape& sum, std::int64_t workspace_bytes, const DirectOperands& data) {
  with_storage(dtype, [&]<class S>(std::type_identity<S>) {
    run_grad_weight_type<S>(run, taps, shape, sum, workspace_bytes, data);
  });
}

}  // namespace convt::simulator
