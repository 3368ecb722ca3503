#pragma once

#include "kernel/simt_shape.hpp"

// The place of a thread block of the simt kernel: what it settles before its first product.
namespace convt {

template <Operator op>
struct SimtSetup : SimtLayout {
  static constexpr bool kForward = op == Operator::forward;
  static constexpr bool kSplits = op == Operator::grad_weight;

  // --- in three steps with barriers between them ---

  static CONVT_HOST_DEVICE void find_taps(const SimtShape& shape, std::int64_t index, int thread, char* shared) {
    if (thread >= kAxes) return;
    const SimtAxis& axis = shape.axis[thread];
    // Phase fastest: the blocks that interleave their outputs run together. Splits slowest: those that read the same pixels do.
    std::int64_t phase_index = 0;
    if constexpr (kForward) {
      for (int a = kAxes - 1; a >= 0; --a) {
        const std::int64_t digit = simt_split(index, shape.axis[a].phases);
        if (a == thread) phase_index = digit;
      }
    }
    if (thread == 0) {
      SimtBlock& block = *block_at(shared);
      block.channel = simt_split(index, shape.channel_tiles) * tile_channels(shape);
      block.pixel = simt_split(index, shape.pixel_tiles) * tile_pixels(shape);
      block.split = 0;
      if constexpr (kSplits) {
        block.group = simt_split(index, shape.groups);
        block.split = index;
      } else {
        block.group = index;
      }
    }
    SimtBlock::PerAxis found{};
    found.run = 1;
    PhaseTaps taps{0, axis.rows, 0};
    if constexpr (kForward) {
      const std::int64_t stride = axis.taps.stride;
      if (thread == kAxes - 1 && shape.phase_runs) {
        found.phase = phase_index;
        found.run = phase_index == axis.phases - 1 ? stride - phase_index : 1;
      } else {
        found.phase = (axis.padding + phase_index) % stride;
      }
      taps = axis.taps.taps_of(found.phase);
    }
    found.tap_first = taps.first;
    found.tap_count = taps.count;
    found.shift_first = taps.shift;
    block_at(shared)->axis[thread] = found;
  }

  static CONVT_HOST_DEVICE std::int64_t positions_of(const SimtBlock& block) {
    return block.axis[0].q_count * block.axis[1].q_count * block.axis[2].q_count;
  }
  static CONVT_HOST_DEVICE std::int64_t pixels_of(const SimtShape& shape, const SimtBlock& block) {
    return shape.outer * positions_of(block);
  }

  // More tiles than the pixels of this phase fill, or a block number beyond the last one.
  static CONVT_HOST_DEVICE bool is_idle(const SimtShape& shape, char* shared) {
    const SimtBlock& block = *block_at(shared);
    if (kSplits && block.split >= shape.splits) return true;
    return block.group >= shape.groups || block.pixel >= pixels_of(shape, block);
  }

  // Each of the threads settles an axis for itself: what the others are about to change is not read.
  static CONVT_HOST_DEVICE void find_grid(const SimtShape& shape, int thread, char* shared) {
    if (thread >= kAxes) return;
    SimtBlock::PerAxis& found = block_at(shared)->axis[thread];
    const SimtAxis& axis = shape.axis[thread];
    if constexpr (!kForward) {
      found.q_begin = 0;
      found.q_count = axis.result;
      return;
    }
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
    const std::int64_t last = axis.result - 1 + axis.padding - found.phase;
    found.q_count = last < 0 || found.run == 0 ? 0 : last / stride + 1 - found.q_begin;
    if (found.q_count < 0) found.q_count = 0;
  }

  // Positions of rows that some pixel in a range of the tile meets in a gathered pixel that exists.
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
    const std::int64_t positions = positions_of(block);
    if (shape.outer_fastest) {
      first = simt_divide(first, shape.outer);
      last = simt_divide(last, shape.outer);
    } else if (simt_divide(first, positions) != simt_divide(last, positions)) {
      first = 0;
      last = positions - 1;
    } else {
      simt_split_keep(first, positions);
      simt_split_keep(last, positions);
    }
    std::int64_t low = 0, high = found.q_count - 1;
    std::int64_t inner = positions;
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
    const SimtAxis& axis = shape.axis[thread];
    // 0 <= q - shift_first - t * shift_step < gathered for some q in [low, high]: step * t in [under, over].
    std::int64_t under, over, step;
    if constexpr (kForward) {
      low += found.q_begin;
      high += found.q_begin;
      under = low - (axis.gathered - 1) - found.shift_first;
      over = high - found.shift_first;
      step = axis.shift_step;
    } else {
      under = -(axis.q_first + axis.q_step * high);
      over = axis.gathered - 1 - (axis.q_first + axis.q_step * low);
      step = -axis.shift_step;
    }
    const std::int64_t t_begin = under > 0 ? (under + step - 1) / step : 0;
    std::int64_t t_end = over < 0 ? 0 : over / step + 1;
    if (t_end > found.tap_count) t_end = found.tap_count;
    found.tap_first += t_begin * (kForward ? axis.taps.period : 1);
    found.shift_first += t_begin * axis.shift_step;
    found.tap_count = t_end > t_begin ? t_end - t_begin : 0;
  }
  static CONVT_HOST_DEVICE void simt_split_keep(std::int64_t& value, std::int64_t divisor) {
    value -= simt_divide(value, divisor) * divisor;
  }

  // --- K ---

  static CONVT_HOST_DEVICE std::int64_t rows_of_product(const SimtShape& shape, const SimtBlock& block) {
    return shape.depth * block.axis[0].tap_count * block.axis[1].tap_count * block.axis[2].tap_count;
  }

  // Chunks of K before those of a split; `split` may be one past the last.
  static CONVT_HOST_DEVICE std::int64_t chunks_before(const SimtShape& shape, const SimtBlock& block,
                                                      std::int64_t split) {
    const std::int64_t rows = rows_of_product(shape, block);
    const int log2 = shape.slice_rows_log2 + shape.slices_log2;
    return simt_divide(((rows + (1 << log2) - 1) >> log2) * split, shape.splits);
  }
  static CONVT_HOST_DEVICE std::int64_t first_chunk(const SimtShape& shape, const SimtBlock& block) {
    return kSplits ? chunks_before(shape, block, block.split) : 0;
  }
  static CONVT_HOST_DEVICE int chunks_of(const SimtShape& shape, char* shared) {
    const SimtBlock& block = *block_at(shared);
    if (kSplits) return int(chunks_before(shape, block, block.split + 1) - chunks_before(shape, block, block.split));
    const std::int64_t chunk = chunk_of(shape);
    return int(simt_divide(rows_of_product(shape, block) + chunk - 1, chunk));
  }
};

}  // namespace convt
