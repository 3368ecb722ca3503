#pragma once

#include "arch/copy.hpp"
#include "arch/pointwise.hpp"
#include "kernel/direct_params.hpp"

// The tile of a thread block of the depthwise kernels, its filter, and the output rows that a thread takes on.
namespace convt {

inline constexpr int kDepthwisePitch = 72;         // accumulators from one patch row to the next
inline constexpr int kDepthwiseChannelsRows = 4;   // output rows of a thread where channels are contiguous
// The same elsewhere: as many outputs as it takes to pay for finding them.
constexpr int depthwise_rows(std::int64_t storage_bytes) { return storage_bytes == 2 ? 16 : 8; }

struct DepthwiseAxis {
  TapSolver taps;
  std::int32_t input, output, padding;   // pixels
  std::int32_t tile;                     // outputs of a block
  std::int32_t patch;                    // input pixels of a block, halo included
  std::int32_t max_shift, shift_step;    // pixels
  std::int32_t period;                   // taps of a phase are this far apart
  std::int32_t phase_begin;              // first entry of the phase table
  std::int32_t filter_step;              // filter elements in shared memory from one tap to the next
  FastDivisor by_stride;
};

// A row axis (H) is walked in blocks of rows * stride outputs, so that a thread's rows have one phase. A one-dimensional
// problem is folded: row r of the H axis stands for outputs [r * fold_output, (r + 1) * fold_output) of the W axis.
struct DepthwiseShape {
  DepthwiseAxis axis[kAxes];
  DirectStrides strides;
  std::int32_t groups, group_in, group_out;
  std::int32_t taps;                     // of the whole filter
  std::int32_t phases;                   // entries of the phase table
  std::int32_t lane_groups;              // groups side by side in the lanes of a block
  std::int32_t stacked_groups;           // times this many one after the other
  std::int32_t lanes;                    // threads along one output row
  std::int32_t lane_rows;                // rows of them
  std::int32_t patch_width;              // columns in use of a patch row
  std::int32_t patch_lanes;              // rows of threads that load them
  std::int32_t fold_input, fold_output;  // pixels; 0 when not folded
  std::int32_t filter_bytes;             // where the filter and the patch are in shared memory
  std::int32_t patch_bytes;
  bool filter_in_shared;
  FastDivisor by_tile_w, by_channels_in, by_channels_out, by_taps, by_taps_w, by_taps_hw;
  FastDivisor by_tiles[kAxes], by_channel_blocks;
  FastDivisor by_row_phases, by_tile_d;  // items of a stack: output planes x row blocks x row phases
};

struct DepthwiseBlock {
  std::int32_t image, group;             // the first group
  std::int32_t output[kAxes];            // first output pixel
  std::int32_t q[kAxes];                 // its q
};

struct alignas(16) DepthwisePhase {
  std::int32_t first, count, shift, unused;
};

CONVT_HOST_DEVICE inline DepthwiseBlock depthwise_block(const DepthwiseShape& shape, std::int32_t index) {
  DepthwiseBlock block;
#pragma unroll
  for (int a = kAxes - 1; a >= 0; --a) {
    const std::int32_t rest = shape.by_tiles[a].quotient(index);
    block.output[a] = shape.by_tiles[a].remainder(index, rest) * shape.axis[a].tile;
    block.q[a] = shape.axis[a].by_stride.quotient(block.output[a] + shape.axis[a].padding);
    index = rest;
  }
  block.image = shape.by_channel_blocks.quotient(index);
  block.group = shape.by_channel_blocks.remainder(index, block.image) * (shape.lane_groups * shape.stacked_groups);
  return block;
}

// The phase tables and, as accumulators, the filters of the block's groups: [output channel][input channel][tap], or with
// channels contiguous [input channel][tap][output channel].
template <class S>
CONVT_HOST_DEVICE inline void load_depthwise_filter(const DepthwiseShape& shape, const DirectOperands& data,
                                                    const DepthwiseBlock& block, int thread, int threads, char* shared,
                                                    std::int32_t tap_pitch) {
  DepthwisePhase* const phases = reinterpret_cast<DepthwisePhase*>(shared);
  for (int entry = thread; entry < shape.phases; entry += threads) {
    const int a = entry >= shape.axis[2].phase_begin ? 2 : entry >= shape.axis[1].phase_begin ? 1 : 0;
    const PhaseTaps taps = shape.axis[a].taps.taps_of(entry - shape.axis[a].phase_begin);
    phases[entry] = {std::int32_t(taps.first), std::int32_t(taps.count), std::int32_t(taps.shift), 0};
  }
  if (!shape.filter_in_shared) return;
  Accumulator<S>* const filter = reinterpret_cast<Accumulator<S>*>(shared + shape.filter_bytes);
  const int channels = shape.lane_groups * shape.stacked_groups * shape.group_out;
  const int count = channels * shape.group_in * shape.taps;
  const S* const source = static_cast<const S*>(data.filter);
  for (int element = thread; element < count; element += threads) {
    // In the filter's own order, for the sake of coalescing: tap fastest.
    const std::int32_t pair = shape.by_taps.quotient(element), tap = shape.by_taps.remainder(element, pair);
    const std::int32_t channel = shape.by_channels_in.quotient(pair);
    const std::int32_t in = shape.by_channels_in.remainder(pair, channel);
    const std::int32_t local = shape.by_channels_out.quotient(channel);
    const std::int32_t out = shape.by_channels_out.remainder(channel, local);
    const std::int32_t d = shape.by_taps_hw.quotient(tap), plane = shape.by_taps_hw.remainder(tap, d);
    const std::int32_t h = shape.by_taps_w.quotient(plane), w = shape.by_taps_w.remainder(plane, h);
    const std::int64_t group = block.group + local;
    const std::int64_t offset = (group * shape.group_in + in) * shape.strides.filter[0] +
                                out * shape.strides.filter[1] + d * shape.strides.filter[2] +
                                h * shape.strides.filter[3] + w * shape.strides.filter[4];
    const int to = tap_pitch == 1 ? element : (in * shape.taps + tap) * tap_pitch + channel;
    filter[to] = group < shape.groups ? widen(read_global(source + offset)) : Accumulator<S>(0);
  }
}

// The output rows of one item: a thread's rows r are at output row + r * stride, q + r.
struct DepthwiseItem {
  std::int32_t stack;                    // which of the stacked groups
  std::int32_t plane, row;               // output pixels
  std::int32_t plane_q, row_q;
  DepthwisePhase plane_taps, row_taps;
};

CONVT_HOST_DEVICE inline std::int32_t depthwise_items(const DepthwiseShape& shape) {
  return shape.stacked_groups * shape.axis[0].tile * std::int32_t(shape.by_row_phases.divisor);
}

template <int kRows>
CONVT_HOST_DEVICE inline DepthwiseItem depthwise_item(const DepthwiseShape& shape, const DepthwiseBlock& block,
                                                      std::int32_t index, const DepthwisePhase* phases) {
  DepthwiseItem item;
  const DepthwiseAxis &d = shape.axis[0], &h = shape.axis[1];
  const std::int32_t planes = shape.by_row_phases.quotient(index);
  const std::int32_t row = shape.by_row_phases.remainder(index, planes);
  item.stack = shape.by_tile_d.quotient(planes);
  item.plane = block.output[0] + shape.by_tile_d.remainder(planes, item.stack);
  const std::int32_t row_block = h.by_stride.quotient(row);
  item.row =
      block.output[1] + row_block * (kRows * std::int32_t(h.by_stride.divisor)) + h.by_stride.remainder(row, row_block);
  item.plane_q = d.by_stride.quotient(item.plane + d.padding);
  item.plane_taps = phases[d.phase_begin + d.by_stride.remainder(item.plane + d.padding, item.plane_q)];
  item.row_q = h.by_stride.quotient(item.row + h.padding);
  item.row_taps = phases[h.phase_begin + h.by_stride.remainder(item.row + h.padding, item.row_q)];
  return item;
}

// Where a thread's first output lies along H and W, and how far apart its rows are along which of the two: the axis of a
// tensor, 3 or 4.
struct DepthwiseRowsOf {
  std::int64_t row, column, row_step, column_step;
  int axis;
};
CONVT_HOST_DEVICE inline DepthwiseRowsOf depthwise_rows_of(const DepthwiseShape& shape, std::int32_t row,
                                                           std::int32_t column) {
  const std::int64_t stride = shape.axis[1].taps.stride;
  if (!shape.fold_output) return {row, column, stride, 0, 3};
  return {0, column + std::int64_t(row) * shape.fold_output, 0, stride * shape.fold_output, 4};
}

// First row index of a thread's column that does not exist.
CONVT_HOST_DEVICE inline std::int32_t depthwise_row_limit(const DepthwiseShape& shape, std::int32_t column) {
  const std::int32_t left = shape.axis[2].output - column;
  if (left <= 0) return 0;
  if (!shape.fold_output) return shape.axis[1].output;
  const std::int32_t rows = (left + shape.fold_output - 1) / shape.fold_output;
  return rows < shape.axis[1].output ? rows : shape.axis[1].output;
}

}  // namespace convt
