#pragma once

#include "collective/weight_params.hpp"
#include "config/outer_config.hpp"

// What a launch of the weight gradient for Hopper is told. A box is a tile of input pixels, and the patch of grad_output that taps
// read for them: all its pixels as they lie, whatever the stride.
namespace convt {

struct OuterAxis {                 // N, D, H, W
  std::int64_t input, output;      // extents of the input and of grad_output
  std::int32_t step;               // grad_output pixels between those of neighbouring positions
  std::int32_t tile;               // positions of a box
  std::int32_t tiles;
  std::int32_t extent;             // of a patch, pixels
  std::int32_t phases;             // a patch's pixels lie phase by phase: those that are so many apart side by side
  std::int32_t shift;              // of its coordinate in an OuterEntry's place
  FastDivisor by_tile, by_tiles, by_extent;
  FastDivisor by_width;            // extent / phases
};

// A tap of a block: where it reads, and where its products go.
struct OuterTap {
  std::int64_t result;             // elements from the result's first
  std::int32_t pixel;              // of the patch, from that of a position
  std::int32_t unused;
};

// The taps of a thread block, which share a patch.
struct OuterBlock {
  std::int32_t low[kAxes];         // grad_output pixels from step * q to a patch's first, D, H, W
  std::int32_t first_tap, taps;
  std::int32_t unused;
};

// What a copy is of: coordinates in a box or its patch, one field of bits per axis and a bit above each that is zero, and elements
// from the first pixel.
struct OuterEntry {
  std::uint32_t place;
  std::int32_t offset;
};
// The places of a box that exist: [low, high] of every axis, the bits above the fields of `high` set.
struct OuterWindow {
  std::uint32_t low, high;
};
// A box: where its first pixels lie, bytes from the tensors' first elements, and what of it exists.
struct OuterOrigin {
  std::int64_t input, patch;
};
struct OuterWindows {
  OuterWindow of_input, of_patch;
};

// Offsets in shared memory.
struct OuterShared {
  std::int32_t input;              // [stage][line of 128 B], as OuterConfig says
  std::int32_t patch;              // [stage], as `patch_*_bytes` say
  std::int32_t patch_stage_bytes;
  std::int32_t positions;          // int32 [position]: byte offset of its patch pixel
  std::int32_t entries;            // OuterEntry [copy of an input channel], then [copy of a patch channel]
  std::int32_t origins;            // OuterOrigin [kToldBoxes] of the next boxes
  std::int32_t windows;            // OuterWindows [kToldBoxes]
  std::int32_t barriers;  // 8 bytes each: stages full, then empty
  std::int32_t bytes;
};

struct OuterParams {
  const void* input;
  const void* patch;  // grad_output
  void* result;  // float partial sums of the splits, or the gradient itself
  const char* tables;  // or null: they travel beside the parameters
  std::int64_t input_strides[2 + kAxes];  // N, C, D, H, W, elements
  std::int64_t patch_strides[2 + kAxes];
  std::int64_t split_stride;  // of the result, elements
  std::int64_t row_stride,
      column_stride;  // of the result: between input channels and between output channels, elements
  std::int64_t group_stride;  // of the result, between conv groups
  OuterAxis axes[kTileAxes];
  WeightTables table;  // OuterBlock[tap_blocks], OuterTap[]
  OuterShared shared;
  std::int32_t in_channels, out_channels;  // per conv group
  std::int32_t conv_groups;
  std::int32_t block_octets;  // eights of output channels of a block
  std::int32_t row_blocks, channel_blocks, tap_blocks;  // of input channels, output channels and taps
  std::int32_t boxes;  // of all positions
  std::int32_t splits;
  std::int32_t
      staged_pitch;  // elements between input channels of a result that leaves through shared memory; 0: it does not
  std::int32_t partial;  // 1: the result is float, whatever the operand
  std::int32_t stages;  // boxes in shared memory
  // Pixels of a copy, where they are innermost; else 1, and 16 bytes of channels.
  std::int32_t input_piece, patch_piece;
  // 1: strides or addresses allow no copies past the registers: elements go through them one by one.
  std::int32_t input_by_registers, patch_by_registers;
  std::uint32_t guards;  // the bits above the fields of a place
  std::uint32_t nowhere;  // a place in no window
  std::int32_t patch_pixels;
  std::int32_t input_entries, patch_entries;   // copies of one channel's part of a box
  // Where an element of a patch lies: bytes from one pixel to the next, one channel to the next, and one octet to the next.
  std::int32_t pixel_bytes, channel_bytes, octet_bytes;
  std::int32_t lanes_log2;  // loaders side by side along the copies of a patch, log2
  FastDivisor by_tap_blocks, by_channel_blocks, by_row_blocks, by_conv_groups, by_octets;
};

CONVT_HOST_DEVICE inline bool is_there(const OuterParams& params, const OuterWindow& window, std::uint32_t place) {
  return (((place | params.guards) - window.low) & (window.high - place) & params.guards) == params.guards;
}

}  // namespace convt
