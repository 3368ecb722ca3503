#pragma once

#include "config/tile_config.hpp"

namespace convt {

inline constexpr int kOctet = 8;   // channels of a column tile: columns of an mma.sync

// One compiled variant of the weight gradient's GEMM. A tile is `rows` input channels by `columns` pairs of a tap and an output
// channel; the reduction runs over pixels, `pixels` of them between two barriers.
struct WeightConfig {
  int rows;
  int columns;
  int warps_m;  // warps along rows
  int warps_n;  // warps along columns
  int pixels;
  int blocks;  // thread blocks per multiprocessor that registers and shared memory must leave room for
  int buffers;  // 2: fragments of the next MMA step are fetched during the products of this one, where registers suffice

  // The products of ieee take registers: another block has none to spare, and large sums leave none at all.
  CONVT_HOST_DEVICE constexpr int blocks_of(Operand operand) const {
    return operand == Operand::ieee && blocks >= 2 ? blocks - 1 : blocks;
  }
  CONVT_HOST_DEVICE constexpr int buffers_of(Operand operand) const { return operand == Operand::ieee ? 1 : buffers; }
  CONVT_HOST_DEVICE constexpr bool has(Operand operand) const {
    return operand != Operand::ieee || warp_rows() * warp_columns() <= 64 * 32;
  }
  // Batches of eight channels that a thread issues at a step, so that a box arrives while another is multiplied.
  CONVT_HOST_DEVICE constexpr int issued(Operand operand) const {
    const int steps = pixels / (is_float32(operand) ? 8 : 16) - 1;
    const int batches = (rows + 64) / kOctet * pixels / threads();
    const int wanted = (batches + steps - 1) / steps;
    return wanted < 2 ? 1 : 2;
  }
  // Steps that they have to arrive: one where sums, a third block, or the addresses of many columns leave no registers for two.
  CONVT_HOST_DEVICE constexpr int away(Operand operand) const {
    if (is_float32(operand)) return warp_columns() > 64 && warp_columns() < 128 ? 1 : 2;
    return warp_rows() * warp_columns() >= 128 * 32 || blocks > 2 ? 1 : 2;
  }
  CONVT_HOST_DEVICE constexpr int warps() const { return warps_m * warps_n; }
  CONVT_HOST_DEVICE constexpr int threads() const { return 32 * warps(); }
  CONVT_HOST_DEVICE constexpr int warp_rows() const { return rows / warps_m; }
  CONVT_HOST_DEVICE constexpr int warp_columns() const { return columns / warps_n; }
  CONVT_HOST_DEVICE constexpr int column_tiles() const { return columns / kOctet; }
  // Pixels from one plane of the input's tile to the next: four channels of two planes then lie in different banks.
  CONVT_HOST_DEVICE constexpr int input_pitch() const { return pixels + 4; }
  CONVT_HOST_DEVICE constexpr int input_stage_bytes(Operand operand) const {
    return rows / operand_vector(operand) * input_pitch() * 16;
  }
  constexpr bool operator==(const WeightConfig&) const = default;
};

// The same for a patch of grad_output.
CONVT_HOST_DEVICE constexpr std::int32_t patch_pitch(std::int32_t pixels) { return pixels + (12 - pixels % 8) % 8; }

}  // namespace convt
