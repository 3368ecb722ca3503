#pragma once

#include "collective/tile_scheduler.hpp"
#include "config/weight_config.hpp"

// What a launch of the weight gradient's GEMM is told.
namespace convt {

// What patches are fetched from: grad_output, phase by phase.
struct PatchSource {
  const void* input;
  std::int64_t input_strides[2 + kAxes];   // N, C, D, H, W, elements
  TileAxis axes[kTileAxes];       // positions are input pixels of the problem: q_count, tile, tiles
};

// A tap of a block: where it reads, and where its products go.
struct WeightTap {
  std::int64_t result;            // elements from the result's first
  std::int32_t pixel_offset;      // from a position of the box to its patch pixel, pixels
  std::int32_t unused;
};

struct PatchBounds {
  std::int32_t low[kAxes];        // grad_output pixels from step * q to a patch's first pixel, D, H, W
  std::int32_t high[kAxes];       // and to its last
};

// The taps of a thread block, which share a patch of grad_output.
struct WeightBlock {
  PatchBounds bounds;
  ShiftGroup group;               // first_shift and shifts count WeightTaps
};

struct WeightTables {
  std::int32_t blocks;            // WeightBlock[tap_blocks]
  std::int32_t taps;              // WeightTap[]
  std::int32_t bytes;
};

// Offsets in shared memory.
struct WeightShared {
  std::int32_t input;             // [stage][plane][pixel][16 B]
  std::int32_t patch;             // [stage][plane][patch pixel][16 B]
  std::int32_t patch_stage_bytes;
  std::int32_t positions;         // int32 [pixel]: byte offset of a position in a plane of the patch
  std::int32_t pixel_tables;  // [stage]: int32 [pixel] of the input's tile, then [patch pixel]: element offset or -1
  std::int32_t pixel_table_bytes;  // of one stage
  std::int32_t place_table;  // int32 [patch pixel], or 0
  std::int32_t bytes;
};

struct WeightParams {
  PatchSource patch;
  const char* tables;             // or null: they travel beside the parameters
  const void* input;
  void* result;  // float partial sums of the splits, or the gradient itself
  std::int64_t input_strides[2 + kAxes];
  std::int64_t split_stride;  // of the result, elements
  std::int64_t row_stride,
      column_stride;  // of the result: between input channels and between output channels, elements
  std::int64_t group_stride;  // of the result, between conv groups
  WeightTables table;
  WeightShared shared;
  std::int32_t in_channels, out_channels;  // per conv group
  std::int32_t conv_groups;
  std::int32_t block_octets;  // eights of output channels of a block
  std::int32_t row_blocks, channel_blocks, tap_blocks;  // of input channels, output channels and taps
  std::int32_t boxes;  // of all positions
  std::int32_t splits;
  std::int32_t input_vectors, patch_vectors;  // 1: channels are contiguous, aligned and whole: 16-byte loads
  std::int32_t partial;  // 1: the result is float, whatever the operand
  std::int32_t pixels;            // of a patch: as many for all tap blocks
  FastDivisor by_tap_blocks, by_channel_blocks, by_row_blocks, by_conv_groups, by_octets, by_pixels;
};

// `pixels` of the largest patch, `planes` of a block's output channels.
constexpr WeightShared weight_shared(const WeightConfig& config, Operand operand, std::int32_t pixels,
                                     std::int32_t planes, bool interleaved) {
  WeightShared layout{};
  layout.input = 0;
  layout.patch = 2 * config.input_stage_bytes(operand);
  layout.patch_stage_bytes = planes * patch_pitch(pixels) * 16;
  layout.positions = layout.patch + 2 * layout.patch_stage_bytes;
  layout.pixel_tables = layout.positions + 4 * config.pixels;
  layout.pixel_table_bytes = 4 * (config.pixels + pixels);
  layout.place_table = layout.pixel_tables + 2 * layout.pixel_table_bytes;
  layout.bytes = layout.place_table + (interleaved ? 4 * pixels : 0);
  if (!interleaved) layout.place_table = 0;
  return layout;
}

// What one thread block computes.
struct WeightTile {
  std::int32_t conv_group, row_block, channel_block, tap_block;
  std::int32_t first_box, end_box;
  std::int32_t split;
};

// Neighbouring thread blocks share their pixels.
template <class Params>
CONVT_HOST_DEVICE WeightTile weight_tile(const Params& params, std::int32_t block) {
  WeightTile tile;
  const auto next = [&block](const FastDivisor& by) {
    const std::int32_t quotient = by.quotient(block), digit = by.remainder(block, quotient);
    block = quotient;
    return digit;
  };
  tile.tap_block = next(params.by_tap_blocks);
  tile.channel_block = next(params.by_channel_blocks);
  tile.row_block = next(params.by_row_blocks);
  tile.conv_group = next(params.by_conv_groups);
  tile.split = block;
  tile.first_box = std::int32_t(std::int64_t(params.boxes) * block / params.splits);
  tile.end_box = std::int32_t(std::int64_t(params.boxes) * (block + 1) / params.splits);
  return tile;
}

// The positions of a box: q and count of a tile.
CONVT_HOST_DEVICE inline Tile box_of(const WeightParams& params, std::int32_t box) {
  Tile tile{};
  for (int axis = kTileAxes - 1; axis >= 0; --axis) {
    const TileAxis& along = params.patch.axes[axis];
    const std::int32_t outer = along.by_tiles.quotient(box);
    const std::int64_t first = std::int64_t(along.by_tiles.remainder(box, outer)) * along.tile;
    const std::int64_t left = along.q_count - first;
    tile.q[axis] = first;
    tile.count[axis] = left < along.tile ? std::int32_t(left) : along.tile;
    box = outer;
  }
  return tile;
}

}  // namespace convt
