#pragma once

#include "kernel/depthwise_patch.hpp"

// The tile of a thread block of the two gradients of depthwise problems. Both read, for an input pixel I and a tap k, the
// output pixel stride * I + dilation * k - padding; its place in the box does not depend on the tile.
namespace convt {

// Input pixels of a thread: down a column, or along a row with the tile's other columns in between.
inline constexpr int kDepthwisePixels = 8;
// Accumulators from one of them to the next, in both boxes: lanes along the rows, and along the channels.
inline constexpr int kDepthwiseRowsPitch = 80;
inline constexpr int kDepthwiseChannelsPitch = 144;
// Where they are too wide for the box, it has pitches of its own.
inline constexpr int kDepthwiseAnyPitch = 0;

// Taps that a thread of grad_weight keeps: along W, and of one phase along H.
struct DepthwiseTapSet {
  int columns, rows;
};
inline constexpr DepthwiseTapSet kDepthwiseTapSets[] = {{4, 1}, {4, 2}, {3, 3}};

struct DepthwiseGradientAxis {
  std::int32_t input;                    // pixels
  std::int32_t tile;                     // input pixels of a block
  std::int32_t stride, dilation, padding, filter;
};

struct DepthwiseGradientShape {
  DepthwisePatch output;                 // grad_output
  DepthwisePatch input;                  // of grad_weight; of grad_input only the tensor and its channels
  DepthwiseGradientAxis axis[kAxes];
  std::int64_t filter_strides[2 + kAxes];
  std::int32_t group_in, group_out;      // channels of a group
  std::int32_t groups, block_groups;     // of the problem, of a block
  std::int32_t taps;                     // of the whole filter
  std::int32_t row_period;               // taps along H so far apart read pixels of one phase
  std::int32_t row_classes;              // how many phases have taps: min(row_period, taps along H)
  std::int32_t row_step;                 // and such a tap reads so many strides further down than the one before
  bool consecutive_rows;                 // one, and a thread's pixels are as far apart
  std::int32_t pixel_axis;               // H or W: the axis of a thread's pixels
  std::int32_t pixel_distance;           // of a thread's pixels along that axis
  std::int32_t pitch;                    // that of the kernel
  std::int32_t output_pitch, input_pitch;   // of a thread's pixels in the two boxes; accumulators
  std::int32_t slots;                    // input channels (grad_input) or groups (grad_weight) of a block
  std::int32_t items;                    // pixel columns of a slot
  bool channels_inner;                   // which way lanes go on: along the slots, or along the columns
  FastDivisor by_slots, by_items, by_columns, by_rows;   // of the tile, in items
  FastDivisor by_tiles[kAxes], by_channel_blocks, by_group_in, by_group_out, by_row_period;
  // grad_input: filter in shared memory
  std::int32_t filter_begin;             // accumulators
  std::int32_t columns_begin;            // where the columns of the taps along W are; accumulators
  std::int32_t filter_slot_pitch, filter_out_pitch, filter_tap_pitch;   // accumulators
  FastDivisor by_taps, by_pair_taps, by_filter_w, by_filter_hw;
  // grad_weight: who sums which taps
  std::int32_t jobs, block_jobs;         // sets of taps and channel pairs of a group: all, and of a block
  std::int32_t lanes;                    // threads that share a job of a slot; a power of two
  std::int32_t row_sets, column_sets;    // jobs of a phase along H, jobs along W
  FastDivisor by_block_jobs, by_lanes, by_job_blocks, by_row_sets, by_row_classes, by_column_sets, by_filter_d;
  std::int32_t tiles;                    // of all images
  std::int32_t splits;                   // thread blocks that share them
};

struct DepthwiseTile {
  std::int32_t image, group;             // the first group
  std::int32_t pixel[kAxes];             // first input pixel
};

// Tiles vary fastest, then channel blocks, then images.
CONVT_HOST_DEVICE inline std::int32_t depthwise_tile_pixels(const DepthwiseGradientShape& shape, std::int32_t index,
                                                            DepthwiseTile& tile) {
#pragma unroll
  for (int a = kAxes - 1; a >= 0; --a) {
    const std::int32_t rest = shape.by_tiles[a].quotient(index);
    tile.pixel[a] = shape.by_tiles[a].remainder(index, rest) * shape.axis[a].tile;
    index = rest;
  }
  return index;
}

// A thread's pixels: their first one, relative to the tile.
struct DepthwisePixels {
  std::int32_t plane, row, column;
};

CONVT_HOST_DEVICE inline DepthwisePixels depthwise_pixels(const DepthwiseGradientShape& shape, std::int32_t item) {
  DepthwisePixels pixels;
  const std::int32_t line = shape.by_columns.quotient(item);
  pixels.column = shape.by_columns.remainder(item, line);
  pixels.plane = shape.by_rows.quotient(line);
  pixels.row = shape.by_rows.remainder(line, pixels.plane);
  if (shape.pixel_axis == 1) pixels.row *= kDepthwisePixels;
  return pixels;
}

// How many of them exist; at most kDepthwisePixels.
CONVT_HOST_DEVICE inline std::int32_t depthwise_pixels_that_exist(const DepthwiseGradientShape& shape,
                                                                  const DepthwiseTile& tile,
                                                                  const DepthwisePixels& pixels) {
  const std::int32_t plane = shape.axis[0].input - tile.pixel[0] - pixels.plane;
  const std::int32_t row = shape.axis[1].input - tile.pixel[1] - pixels.row;
  const std::int32_t column = shape.axis[2].input - tile.pixel[2] - pixels.column;
  if (plane <= 0 || row <= 0 || column <= 0) return 0;
  const std::int32_t count = shape.pixel_axis == 1 ? row : (column + shape.pixel_distance - 1) / shape.pixel_distance;
  return count < kDepthwisePixels ? count : kDepthwisePixels;
}

// First output pixel of a tile's box.
CONVT_HOST_DEVICE inline void depthwise_output_origin(const DepthwiseGradientShape& shape, const DepthwiseTile& tile,
                                                      std::int32_t (&origin)[kAxes]) {
#pragma unroll
  for (int a = 0; a < kAxes; ++a) origin[a] = tile.pixel[a] * shape.axis[a].stride - shape.axis[a].padding;
}

// Where the output pixel of input pixel `pixels` and tap 0 lies in its box, its column aside; there, columns add up.
CONVT_HOST_DEVICE inline std::int32_t depthwise_output_offset(const DepthwiseGradientShape& shape,
                                                              const DepthwisePixels& pixels) {
  return pixels.plane * shape.axis[0].stride * shape.output.plane_pitch + pixels.row * shape.output.row_pitch +
         pixels.column * shape.output.column_pitch;
}

}  // namespace convt
