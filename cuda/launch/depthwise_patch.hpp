#pragma once

#include "kernel/depthwise_patch.hpp"
#include "launch/request.hpp"

// Where the pixels of a thread block lie in shared memory, and what it takes to get them there.
namespace convt {

// A tensor as the loader sees it.
struct DepthwiseTensor {
  const Strides& strides;
  std::int64_t batch, channels;
  std::int64_t extent[kAxes];
};

// A box before it is laid out.
struct DepthwiseBox {
  std::int64_t pixels[kAxes];
  std::int64_t slots;                // channels
  std::int64_t row_phases, phases;   // along H and W
  std::int64_t column_pitch;         // accumulators; 1: columns are innermost
  std::int64_t row_pitch;            // accumulators; 0: as they come
};

// Lays a box out from accumulator `begin` on; returns where it ends, or -1 when it does not fit its pitch or 32 bits. Vectors
// only with `aligned`; `size` is that of an element, in bytes.
std::int64_t lay_out(DepthwisePatch& patch, const DepthwiseTensor& tensor, const DepthwiseBox& box, bool aligned,
                     std::int64_t size, std::int64_t begin, std::int64_t threads);

// The lines of a box, from accumulator `begin` on; returns where they end.
std::int64_t lay_out_lines(DepthwisePatch& patch, std::int64_t accumulator, std::int64_t begin);

// What loading a box takes: instructions of a thread, rounds of loads that wait for memory, and bytes of the sectors.
struct DepthwiseLoadCost {
  double instructions = 0, rounds = 0, sectors = 0;
};
DepthwiseLoadCost load_cost(const DepthwisePatch& patch, std::int64_t threads, std::int64_t size);

}  // namespace convt
