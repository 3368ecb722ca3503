#include "simulator/run_direct.hpp"

#include <vector>

#include "simulator/host_memory.hpp"
#include "simulator/run_sum.hpp"

namespace convt::simulator {
namespace {

template <class Kernel>
void run_depthwise_kernel(const DirectRun& run, const DepthwiseShape& shape, const DirectOperands& data,
                          const Program* program) {
  const typename Kernel::Params params{shape, data, program_as<typename Kernel::T>(program)};
  PoisonedMemory memory(run.shared_bytes);
  for (std::int64_t block = 0; block < run.blocks; ++block) {
    char* const shared = memory.poisoned();
    const auto index = std::int32_t(block);
    each_thread(run, [&](int thread) { Kernel::load(params, index, thread, run.threads, shared); });
    each_thread(run, [&](int thread) { Kernel::compute(params, index, thread, shared); });
  }
}

template <class S>
void run_depthwise_type(const DirectRun& run, DepthwiseKind kind, const DepthwiseShape& shape,
                        const DirectOperands& data, const Program* program) {
  switch (kind) {
    case DepthwiseKind::rows:
      return run_depthwise_kernel<DepthwiseRows<S>>(run, shape, data, program);
    case DepthwiseKind::channels:
      return run_depthwise_kernel<DepthwiseChannels<S, 1>>(run, shape, data, program);
    case DepthwiseKind::channel_vectors:
      return run_depthwise_kernel<DepthwiseChannels<S, kPacked<S>>>(run, shape, data, program);
  }
}

// The order of Simt::operator().
template <class S, Operator op>
void run_simt_kernel(const DirectRun& run, const SimtShape& shape, const SimtOperands& data, const Program* program) {
  using Kernel = Simt<S, op>;
  using Setup = typename Kernel::Setup;
  const typename Kernel::Params params{shape, data, program_as<typename Kernel::T>(program)};
  PoisonedMemory memory(run.shared_bytes);
  std::vector<typename Kernel::Thread> states(run.threads);
  for (std::int64_t block = 0; block < run.blocks; ++block) {
    char* const shared = memory.poisoned();
    each_thread(run, [&](int thread) { Setup::find_taps(shape, block, thread, shared); });
    each_thread(run, [&](int thread) { Setup::find_grid(shape, thread, shared); });
    if (Setup::is_idle(shape, shared)) continue;
    each_thread(run, [&](int thread) { Setup::clip_taps(shape, thread, shared); });
    int chunks = 0;
    each_thread(run, [&](int thread) {
      Kernel::start(params, thread, shared, states[thread]);
      chunks = Setup::chunks_of(shape, shared);
      if (chunks > 0) Kernel::write_row(params, 0, thread, shared);
    });
    each_thread(run, [&](int thread) {
      if (chunks > 0) Kernel::load(params, 0, thread, shared);
      if (chunks > 1) Kernel::write_row(params, 1, thread, shared);
    });
    for (int chunk = 0; chunk < chunks; ++chunk) {
      each_thread(run, [&](int thread) { Kernel::advance(params, chunk, chunks, thread, shared, states[thread]); });
    }
    for (int slice = 0; slice < 1 << shape.slices_log2; ++slice) {
      each_thread(run, [&](int thread) { Kernel::collect(shape, slice, thread, shared, states[thread]); });
    }
    each_thread(run, [&](int thread) { Kernel::store(params, thread, shared); });
  }
}

template <class S>
void run_simt_type(const DirectRun& run, const SimtPlan& plan, const Pointers& pointers) {
  const SimtOperands data = simt_operands(plan, pointers);
  switch (plan.op) {
    case Operator::forward:
      return run_simt_kernel<S, Operator::forward>(run, plan.shape, data, pointers.program);
    case Operator::grad_input:
      return run_simt_kernel<S, Operator::grad_input>(run, plan.shape, data, pointers.program);
    case Operator::grad_weight:
      run_simt_kernel<S, Operator::grad_weight>(run, plan.shape, data, pointers.program);
      if (plan.shape.splits > 1) {
        using T = typename SumPartials<S>::T;
        run_sum<S>({plan.sum, static_cast<const T*>(pointers.workspace), static_cast<S*>(pointers.filter)});
      }
  }
}

}  // namespace

void run_depthwise(const DirectRun& run, DType dtype, DepthwiseKind kind, const DepthwiseShape& shape,
                   const DirectOperands& data, const Program* program) {
  with_storage(dtype, [&]<class S>(std::type_identity<S>) { run_depthwise_type<S>(run, kind, shape, data, program); });
}

void run_simt(const SimtPlan& plan, const Pointers& pointers, bool backwards) {
  const DirectRun run{plan.grid, plan.threads, plan.shared_bytes, backwards};
  with_storage(plan.dtype, [&]<class S>(std::type_identity<S>) { run_simt_type<S>(run, plan, pointers); });
}

}  // namespace convt::simulator
