#pragma once

#include "kernel/direct_params.hpp"

// The place of a thread block of the simt kernel, and the tables it makes for itself before its first product.
namespace convt {

inline constexpr int kSimtChannels = 4;   // register tile: output channels x pixels
inline constexpr int kSimtPixels = 8;
inline constexpr std::int64_t kSimtMaxInput = 3LL << 30;   // pixels of an axis: q - shift is taken modulo 2**32
inline constexpr std::int64_t kSimtMaxShift = 1LL << 29;
// Minus any shift, modulo 2**32, it is no pixel of any input.
inline constexpr std::uint32_t kSimtNowhere = 0xe8000000u;

struct SimtAxis {
  TapSolver taps;
  std::int64_t input, output, padding, shift_step;   // pixels
  std::int64_t phases;                               // phase indices of this axis
};

struct SimtShape {
  SimtAxis axis[kAxes];
  DirectStrides strides;
  std::int64_t batch, groups, group_in, group_out;
  std::int64_t channel_tiles, pixel_tiles;   // per group; of the phase with the most pixels
  std::int32_t channels_log2, pixels_log2, slices_log2;   // threads of a block along each
  std::int32_t slice_rows_log2;              // rows of K of a slice between two barriers; at least 2
  std::int32_t header_bytes, stage_bytes;    // shared memory before the stages, and of one
  bool phase_runs;           // W: phase index j stands for phase j, the last also for the empty ones behind it
  bool batch_fastest;        // order of a tile's pixels
  bool input_channels_fast;  // lanes of the loader run over channels, not pixels
  bool output_channels_fast;
};

struct SimtBlock {
  struct PerAxis {
    std::int64_t phase, run;         // outputs of `run` phases, this one and empty ones
    std::int64_t q_begin, q_count;
    std::int64_t tap_first, shift_first, tap_count;   // of the taps that the block's pixels meet
  };
  PerAxis axis[kAxes];
  std::int64_t pixel, channel, group;   // first of the tile: pixel of the phase, output channel of the group
};

struct alignas(16) SimtPixel {
  std::int64_t input, output;        // elements; output of the first phase of the run
  std::uint32_t q[kAxes];
  std::int32_t exists;
};

struct alignas(16) SimtRow {         // a row of K: one tap and input channel
  std::int64_t input, filter;        // elements; filter < 0: beyond the end
  std::uint32_t shift[kAxes];
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

struct alignas(16) SimtCursor {      // where a row of the next chunk is; touched by one thread only
  std::int32_t digit[1 + kAxes];     // input channel and taps (W, H, D)
  std::int32_t step[1 + kAxes];      // a chunk, in the same digits
};

// RM x RN = kSimtChannels x kSimtPixels sums per thread.
struct SimtSetup {
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

  // --- before the first chunk, in three steps with barriers between them ---

  static CONVT_HOST_DEVICE void find_taps(const SimtShape& shape, std::int64_t index, int thread, char* shared) {
    if (thread >= kAxes) return;
    const SimtAxis& axis = shape.axis[thread];
    // Phase fastest: the blocks that interleave their outputs run together.
    std::int64_t phase_index = 0;
    for (int a = kAxes - 1; a >= 0; --a) {
      const std::int64_t digit = simt_split(index, shape.axis[a].phases);
      if (a == thread) phase_index = digit;
    }
    if (thread == 0) {
      SimtBlock& block = *block_at(shared);
      block.channel = simt_split(index, shape.channel_tiles) * tile_channels(shape);
      block.pixel = simt_split(index, shape.pixel_tiles) * tile_pixels(shape);
      block.group = index;
    }
    SimtBlock::PerAxis found{};
    const std::int64_t stride = axis.taps.stride;
    if (thread == kAxes - 1 && shape.phase_runs) {
      found.phase = phase_index;
      found.run = phase_index == axis.phases - 1 ? stride - phase_index : 1;
    } else {
      found.phase = (axis.padding + phase_index) % stride;
      found.run = 1;
    }
    const PhaseTaps taps = axis.taps.taps_of(found.phase);
    found.tap_first = taps.first;
    found.tap_count = taps.count;
    found.shift_first = taps.shift;
    block_at(shared)->axis[thread] = found;
  }

  static CONVT_HOST_DEVICE std::int64_t pixels_of(const SimtShape& shape, const SimtBlock& block) {
    return shape.batch * block.axis[0].q_count * block.axis[1].q_count * block.axis[2].q_count;
  }

  // More tiles than the pixels of this phase fill, or a block number beyond the last one.
  static CONVT_HOST_DEVICE bool is_idle(const SimtShape& shape, char* shared) {
    const SimtBlock& block = *block_at(shared);
    return block.group >= shape.groups || block.pixel >= pixels_of(shape, block);
  }

  // Each of the threads settles an axis for itself: what the others are about to change is not read.
  static CONVT_HOST_DEVICE void find_grid(const SimtShape& shape, int thread, char* shared) {
    if (thread >= kAxes) return;
    SimtBlock::PerAxis& found = block_at(shared)->axis[thread];
    const SimtAxis& axis = shape.axis[thread];
    const std::int64_t stride = axis.taps.stride;
    if (thread == kAxes - 1 && shape.phase_runs &&
        (block_at(shared)->axis[0].tap_count == 0 || block_at(shared)->axis[1].tap_count == 0)) {
      // No product in the whole row: phase index 0 fills it.
      found.run = found.phase == 0 ? stride : 0;
      found.tap_count = 0;
    }
    // Output o = stride * q + phase - padding of any phase of the run.
    const std::int64_t first = axis.padding - (found.phase + found.run - 1);
    found.q_begin = first > 0 ? (first + stride - 1) / stride : 0;
    const std::int64_t last = axis.output - 1 + axis.padding - found.phase;
    found.q_count = last < 0 || found.run == 0 ? 0 : last / stride + 1 - found.q_begin;
    if (found.q_count < 0) found.q_count = 0;
  }

  // Taps of which some pixel in a range of q of the tile reads an input pixel that exists.
  static CONVT_HOST_DEVICE void clip_taps(const SimtShape& shape, int thread, char* shared) {
    if (thread >= kAxes) return;
    SimtBlock& block = *block_at(shared);
    SimtBlock::PerAxis& found = block.axis[thread];
    const std::int64_t pixels = pixels_of(shape, block);
    std::int64_t first = block.pixel;
    std::int64_t last = first + tile_pixels(shape) - 1;
    if (last >= pixels) last = pixels - 1;
    if (first > last || found.tap_count == 0) return;
    // Digits of the first and the last pixel; an axis is bounded when all slower digits agree.
    const std::int64_t spatial = block.axis[0].q_count * block.axis[1].q_count * block.axis[2].q_count;
    if (shape.batch_fastest) {
      first = simt_divide(first, shape.batch);
      last = simt_divide(last, shape.batch);
    } else if (simt_divide(first, spatial) != simt_divide(last, spatial)) {
      first = 0;
      last = spatial - 1;
    } else {
      simt_split_keep(first, spatial);
      simt_split_keep(last, spatial);
    }
    std::int64_t low = 0, high = found.q_count - 1;
    std::int64_t inner = spatial;
    bool same = true;
    for (int a = 0; a <= thread && same; ++a) {
      inner = simt_divide(inner, block.axis[a].q_count);
      const std::int64_t from = simt_divide(first, inner), to = simt_divide(last, inner);
      if (a == thread) {
        low = from;
        high = to;
      }
      same = from == to;
      first -= from * inner;
      last -= to * inner;
    }
    low += found.q_begin;
    high += found.q_begin;
    // 0 <= q - shift_first - t * shift_step < input for some q in [low, high].
    const SimtAxis& axis = shape.axis[thread];
    const std::int64_t under = low - (axis.input - 1) - found.shift_first;
    const std::int64_t over = high - found.shift_first;
    const std::int64_t t_begin = under > 0 ? (under + axis.shift_step - 1) / axis.shift_step : 0;
    std::int64_t t_end = over < 0 ? 0 : over / axis.shift_step + 1;
    if (t_end > found.tap_count) t_end = found.tap_count;
    found.tap_first += t_begin * axis.taps.period;
    found.shift_first += t_begin * axis.shift_step;
    found.tap_count = t_end > t_begin ? t_end - t_begin : 0;
  }
  static CONVT_HOST_DEVICE void simt_split_keep(std::int64_t& value, std::int64_t divisor) {
    value -= simt_divide(value, divisor) * divisor;
  }

  static CONVT_HOST_DEVICE std::int64_t rows_of_product(const SimtShape& shape, const SimtBlock& block) {
    return shape.group_in * block.axis[0].tap_count * block.axis[1].tap_count * block.axis[2].tap_count;
  }
  static CONVT_HOST_DEVICE int chunks_of(const SimtShape& shape, char* shared) {
    const std::int64_t rows = rows_of_product(shape, *block_at(shared));
    const std::int64_t chunk = chunk_of(shape);
    return int(simt_divide(rows + chunk - 1, chunk));
  }
};

}  // namespace convt
