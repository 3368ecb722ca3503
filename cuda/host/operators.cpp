#include "host/operators.hpp"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>

#include "host/isa.hpp"
#include "host/parallel.hpp"
#include "host/plan.hpp"

namespace convt::host {
namespace {

std::atomic<bool> poison{false};

// Below this many multiply-adds the definition itself is faster than packing, and no second thread pays.
constexpr std::int64_t kTinyProducts = 512;
constexpr std::int64_t kSerialProducts = 32768;

struct Free {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
};
using Scratch = std::unique_ptr<void, Free>;

Scratch allocate(std::int64_t bytes) {
  if (bytes < 0) throw std::bad_alloc();
  Scratch memory(::operator new(std::size_t(bytes), std::align_val_t{64}));
  if (poison) std::memset(memory.get(), 0xff, std::size_t(bytes));   // every element type reads it as NaN
  return memory;
}

// First-touch page faults cost more than the stores themselves on a fresh result of megabytes (104 MB: 72 ms against 28). A hint
// only: contents are untouched, and pages that exist stay.
void advise_huge_pages([[maybe_unused]] const TensorView& result, [[maybe_unused]] std::int64_t element_bytes) {
#ifdef __linux__
  constexpr std::uintptr_t huge = 2 << 20;
  std::int64_t last = 0;
  for (int axis = 0; axis < 5; ++axis) last += (result.sizes[axis] - 1) * result.strides[axis];
  const auto begin = reinterpret_cast<std::uintptr_t>(result.data);
  const std::uintptr_t first = (begin + huge - 1) & ~(huge - 1),
                       end = (begin + (last + 1) * element_bytes) & ~(huge - 1);
  if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

std::int64_t elements(const TensorView& tensor) {
  std::int64_t count = 1;
  for (const std::int64_t size : tensor.sizes) count *= size;
  return count;
}

int threads_for(std::int64_t products) { return products < kSerialProducts ? 1 : num_threads(); }

std::int64_t products(const Problem& problem, std::int64_t images) {
  return images * problem.in_channels * problem.group_out_channels() * problem.taps() * problem.input_pixels();
}

// A correlation that is ready to run on any data of its shapes.
struct Correlation {
  Correlation(const Problem& problem, Direction direction, DType dtype, const TensorView& source,
              const TensorView& filter, const TensorView& destination)
      : functions(kernels()),
        type(int(dtype)),
        sum_bytes(accumulator_bytes(dtype)),
        element_bytes(storage_bytes(dtype)),
        work(products(problem, destination.sizes[0])),
        threads(threads_for(work + elements(destination))),
        plan(plan_correlation(problem, direction, source, filter, destination, dtype, functions, threads)) {}

  void run(const void* source, const void* filter, const TensorView* bias, void* destination,
           const Program* program = nullptr) const {
    CorrelationArgs args = plan.args;
    args.program = program && program->count > 0 ? program : nullptr;
    args.patch.source.data = const_cast<void*>(source);
    args.filter = filter;
    args.destination.data = destination;
    const std::int64_t channels = args.destination.sizes[1], images = args.destination.sizes[0];
    Scratch bias_row;
    if (bias) {
      bias_row = allocate((channels + 16) * sum_bytes);
      functions.widen_bias[type](*bias, bias_row.get());
      args.bias = bias_row.get();
    }
    advise_huge_pages(args.destination, element_bytes);
    Scratch packed;
    if (work <= kTinyProducts || !pack(args, packed)) {
      parallel_for(images * channels, threads, [&](std::int64_t task, int) {
        functions.correlate_exact[type](args, task / channels, task % channels);
      });
      return;
    }
    const std::int64_t bytes = round_up(plan.scratch_elements * sum_bytes, 64);
    const int team = int(std::min<std::int64_t>(threads, plan.tasks));
    const Scratch scratch = allocate(bytes * team);
    parallel_for(plan.tasks, team, [&](std::int64_t task, int thread) {
      functions.correlate[type](args, task, static_cast<char*>(scratch.get()) + thread * bytes);
    });
  }

  // False: the filter holds Inf or NaN, and only the definition keeps those where they belong.
  bool pack(CorrelationArgs& args, Scratch& packed) const {
    packed = allocate(plan.packed_elements * sum_bytes);
    args.packed_filter = packed.get();
    std::atomic<bool> finite{true};
    parallel_for(args.groups * args.panels, threads, [&](std::int64_t task, int) {
      if (!functions.pack_filter[type](args, task / args.panels, task % args.panels)) finite = false;
    });
    return finite;
  }

  const Kernels& functions;
  int type;
  std::int64_t sum_bytes, element_bytes, work;
  int threads;
  CorrelationPlan plan;
};

}  // namespace

void set_poison(bool on) { poison = on; }

struct PreparedForward::State {
  Correlation correlation;
};

PreparedForward::PreparedForward(const Problem& problem, DType dtype, const TensorView& input, const TensorView& filter,
                                 const TensorView& output)
    : state_(new State{{problem, Direction::forward, dtype, input, filter, output}}) {}
PreparedForward::~PreparedForward() = default;
bool PreparedForward::is_tiny() const { return state_->correlation.work <= kTinyProducts; }
void PreparedForward::run(const void* input, const void* filter, const TensorView* bias, void* output,
                          const Program* program) const {
  state_->correlation.run(input, filter, bias, output, program);
}

void forward(const Problem& problem, DType dtype, const TensorView& input, const TensorView& filter,
             const TensorView* bias, const TensorView& output, const Program* program) {
  if (elements(output) == 0) return;
  Correlation(problem, Direction::forward, dtype, input, filter, output)
      .run(input.data, filter.data, bias, output.data, program);
}

void grad_input(const Problem& problem, DType dtype, const TensorView& grad_output, const TensorView& filter,
                const TensorView& grad_input) {
  if (elements(grad_input) == 0) return;
  Correlation(problem, Direction::grad_input, dtype, grad_output, filter, grad_input)
      .run(grad_output.data, filter.data, nullptr, grad_input.data);
}

void grad_weight(const Problem& problem, DType dtype, const TensorView& grad_output, const TensorView& input,
                 const TensorView& grad_filter) {
  if (elements(grad_filter) == 0) return;
  const Kernels& functions = kernels();
  const int type = int(dtype);
  const std::int64_t size = accumulator_bytes(dtype);
  const std::int64_t work = products(problem, input.sizes[0]);
  const int threads = threads_for(work);
  WeightGradientPlan plan = plan_weight_gradient(problem, grad_output, input, dtype, functions);
  WeightGradientArgs& args = plan.args;

  Scratch partial = allocate(args.slices * plan.partial_elements * size);
  args.partial = partial.get();
  bool exact = work <= kTinyProducts;
  const auto convert = [&](std::int64_t slices) {
    const ConvertArgs convert_args{partial.get(), slices, plan.partial_elements, grad_filter};
    std::atomic<bool> ordered{true};
    parallel_for(problem.in_channels, threads, [&](std::int64_t row, int) {
      if (!functions.convert[type](convert_args, row)) ordered = false;
    });
    return ordered.load();
  };
  if (!exact) {
    const std::int64_t bytes = round_up(plan.scratch_elements * size, 64);
    const int team = int(std::min<std::int64_t>(threads, plan.tasks));
    Scratch scratch = allocate(bytes * team);
    parallel_for(plan.tasks, team, [&](std::int64_t task, int thread) {
      functions.weight_gradient[type](args, task, static_cast<char*>(scratch.get()) + thread * bytes);
    });
    // A NaN may come from Inf times a zero-filled pixel, a product that does not exist: then the definition decides.
    exact = !convert(args.slices);
  }
  if (exact) {
    parallel_for(problem.in_channels, threads,
                 [&](std::int64_t channel, int) { functions.weight_gradient_exact[type](args, channel); });
    convert(1);
  }
}

void grad_bias(DType dtype, const TensorView& grad_output, const TensorView& grad_bias) {
  const ChannelSumArgs args{grad_output, grad_bias};
  parallel_for(grad_output.sizes[1], threads_for(elements(grad_output)),
               [&](std::int64_t channel, int) { kernels().channel_sum[int(dtype)](args, channel); });
}

}  // namespace convt::host
