#pragma once

#include "geometry/operator.hpp"
#include "kernel/direct_params.hpp"

// What the simt kernel is told, and what its thread blocks keep in shared memory. All operators are one product,
//
//     result[channel, pixel] = sum over rows k of plain[k, channel] * gathered[k, pixel]
//
//               channel          pixel: an outer and a position        row of K: a depth and a position     plain    gathered
//  forward      output channel   image, q of one phase                 input channel, tap of the phase      filter   input
//  grad_input   input channel    image, input pixel                    output channel, tap                  filter   grad_output
//  grad_weight  input channel    output channel of the group, tap      image, input pixel                   input    grad_output
//
// where every position has one coordinate per axis. Pixel and row meet in the pixel q - shift of the gathered tensor, on every
// axis; outside of it there is no product. The gradients have one phase, and shifts that are not positive.
namespace convt {

inline constexpr int kSimtChannels = 4;   // register tile: channels x pixels
inline constexpr int kSimtPixels = 8;
inline constexpr std::int64_t kSimtMaxInput = 3LL << 30;   // pixels of an axis: q - shift is taken modulo 2**32
inline constexpr std::int64_t kSimtMaxShift = 1LL << 29;
inline constexpr std::int64_t kSimtMaxGathered =
    1LL << 32;   // the same of the gradients: grad_output and the padding before it
// Minus any shift, modulo 2**32, it is no pixel of any input.
inline constexpr std::uint32_t kSimtNowhere = 0xe8000000u;

// Positions of pixels and rows on an axis. Lengths are in pixels of the respective tensor.
struct SimtAxis {
  TapSolver taps;                    // forward: the rows' positions are the taps of a phase
  std::int64_t rows;                 // gradients: positions of rows, taps or input pixels
  std::int64_t gathered, result;  // extents: of the gathered tensor; of the output (forward) or the pixels' positions
  std::int64_t padding;  // forward only
  std::int64_t shift_step;  // from a row's position to the next; gradients: minus dilation or minus stride
  std::int64_t phases;  // phase indices of this axis
  std::int64_t q_first, q_step;  // gradients: position j has q = q_first + q_step * j
};

// In elements. `group` leads to the first channel of the next group, `axis` along D, H, W.
struct SimtStrides {
  struct Plain {
    std::int64_t group, channel, depth, axis[kAxes];
  } plain;
  struct Gathered {
    std::int64_t group, outer, depth, axis[kAxes];
  } gathered;
  struct Result {
    std::int64_t group, channel, outer, axis[kAxes], split;  // split: of partial sums
  } result;
  std::int64_t bias;
};

struct SimtShape {
  SimtAxis axis[kAxes];
  SimtStrides strides;
  std::int64_t groups, channels, outer, depth;  // extents; all but `groups` of a group
  std::int64_t channel_tiles, pixel_tiles;  // per group; of the phase with the most pixels
  std::int64_t splits;  // grad_weight: thread blocks that share a tile, each with a range of K
  std::int32_t channels_log2, pixels_log2, slices_log2;  // threads of a block along each
  std::int32_t slice_rows_log2;  // rows of K of a slice between two barriers; at least 2
  std::int32_t header_bytes, stage_bytes;  // shared memory before the stages, and of one
  bool phase_runs;  // forward, W: phase index j stands for phase j, the last also for the empty ones behind it
  bool outer_fastest;  // order of a tile's pixels
  bool depth_fastest;  // grad_input: order of K; always in the forward, never in grad_weight
  bool plain_rows_fast;  // gradients: lanes of the loader run over rows, not channels
  bool gathered_rows_fast;  // over rows, not pixels
  bool result_channels_fast;  // lanes of the store run over channels, not pixels
};

// Pointers of one call.
struct SimtOperands {
  const void* plain;
  const void* gathered;
  const void* bias;  // null: none
  void* result;  // with splits: the partial sums
};

struct SimtBlock {
  struct PerAxis {
    std::int64_t phase, run;  // outputs of `run` phases, this one and empty ones
    std::int64_t q_begin, q_count;  // positions of pixels
    std::int64_t tap_first, shift_first,
        tap_count;  // positions of rows that the block's pixels meet, and the first one's shift
  };
  PerAxis axis[kAxes];
  std::int64_t pixel, channel, group;  // first of the tile: pixel of the phase, channel of the group
  std::int64_t split;
};

struct alignas(16) SimtPixel {
  std::int64_t gathered, result;  // elements; result of the first phase of the run
  std::uint32_t q[kAxes];
  std::int32_t exists;
};

struct alignas(16) SimtRow {  // a row of K
  std::int64_t gathered, plain;  // elements; plain < 0: beyond the end
  std::uint32_t shift[kAxes];
};

struct alignas(16) SimtCursor {  // where a row of the next chunk is; touched by one thread only
  std::int32_t digit[1 + kAxes];  // depth and positions (W, H, D), or positions and depth
  std::int32_t step[1 + kAxes];  // a chunk, in the same digits
};

// Quotient of non-negative numbers; most are small.
CONVT_HOST_DEVICE inline std::int64_t simt_divide(std::int64_t value, std::int64_t divisor) {
  if ((value | divisor) >> 32 == 0) return std::uint32_t(value) / std::uint32_t(divisor);
  return value / divisor;
}
CONVT_HOST_DEVICE inline std::int64_t simt_split(std::int64_t& value, std::int64_t divisor) {
  const std::int64_t quotient = simt_divide(value, divisor), remainder = value - quotient * divisor;
  value = quotient;
  return remainder;
}

// RM x RN = kSimtChannels x kSimtPixels sums per thread.
struct SimtLayout {
  static constexpr int RM = kSimtChannels, RN = kSimtPixels;

  static CONVT_HOST_DEVICE int tile_channels(const SimtShape& shape) { return RM << shape.channels_log2; }
  static CONVT_HOST_DEVICE int tile_pixels(const SimtShape& shape) { return RN << shape.pixels_log2; }
  static CONVT_HOST_DEVICE int threads_log2(const SimtShape& shape) {
    return shape.channels_log2 + shape.pixels_log2 + shape.slices_log2;
  }
  static CONVT_HOST_DEVICE int threads_of(const SimtShape& shape) { return 1 << threads_log2(shape); }
  static CONVT_HOST_DEVICE int chunk_of(const SimtShape& shape) {
    return 1 << (shape.slice_rows_log2 + shape.slices_log2);
  }

  // --- shared memory: block, rows of two chunks, cursors, pixels, then stages or the output tile ---

  static CONVT_HOST_DEVICE SimtBlock* block_at(char* shared) { return reinterpret_cast<SimtBlock*>(shared); }
  static CONVT_HOST_DEVICE SimtRow* rows_at(const SimtShape& shape, char* shared, int chunk) {
    return reinterpret_cast<SimtRow*>(shared + kBlockBytes) + (chunk & 1) * chunk_of(shape);
  }
  static CONVT_HOST_DEVICE SimtCursor* cursors_at(const SimtShape& shape, char* shared) {
    return reinterpret_cast<SimtCursor*>(shared + kBlockBytes) + 2 * chunk_of(shape);
  }
  static CONVT_HOST_DEVICE SimtPixel* pixels_at(const SimtShape& shape, char* shared) {
    return reinterpret_cast<SimtPixel*>(shared + kBlockBytes) + 3 * chunk_of(shape);
  }
  static_assert(RM == 1 << 2 && RN == 1 << 3, "along_channels and along_pixels count on it");
  static_assert(sizeof(SimtPixel) == sizeof(SimtRow) && sizeof(SimtCursor) == sizeof(SimtRow),
                "the tables are addressed in one unit");
  static constexpr int kBlockBytes = (int(sizeof(SimtBlock)) + 15) / 16 * 16;
};

}  // namespace convt
