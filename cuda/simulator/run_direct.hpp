#pragma once

#include "geometry/dtype.hpp"
#include "kernel/depthwise.hpp"
#include "kernel/simt.hpp"
#include "launch/simt.hpp"

// The CUDA-core kernels on the host: the very functions that a GPU runs, thread by thread, between the same barriers.
// Shared memory starts as NaN. For tests.
namespace convt::simulator {

// How many thread blocks and threads there are, and in which order a block's threads run between two barriers.
struct DirectRun {
  std::int64_t blocks;
  int threads;
  std::int64_t shared_bytes;
  bool backwards;
};

enum class DepthwiseKind { rows, channels, channel_vectors };

void run_depthwise(const DirectRun& run, DType dtype, DepthwiseKind kind, const DepthwiseShape& shape,
                   const DirectOperands& data, const Program* program);
// With the sum of its splits.
void run_simt(const SimtPlan& plan, const Pointers& pointers, bool backwards);

}  // namespace convt::simulator
