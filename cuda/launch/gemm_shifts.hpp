#pragma once

#include <array>
#include <vector>

#include "collective/gemm_params.hpp"
#include "launch/gemm_shape.hpp"

// What a thread block multiplies, before its tile's box is chosen: phases, and shifts that have taps at them.
namespace convt {

using Origins = std::array<Origin, kAxes>;

// Shifts that could share a patch, would it fit.
struct PatchSpan {
  std::int32_t low[kAxes];      // of the shifts, D, H, W
  std::int32_t high[kAxes];
  std::int32_t w_phases;        // of the input
  std::int32_t first, shifts;   // where they are among those of their block
};

// One phase block and its shifts.
struct BlockShifts {
  PhaseBlock block{};
  std::vector<std::int16_t> slots;    // [outer_count][w_count]
  std::vector<std::int32_t> phases;   // [slots]
  std::vector<ShiftRecord> shifts;    // without pixel offsets; in the order of the phases that they read
  std::vector<PatchSpan> spans;
  std::int64_t row_tiles = 0;         // row tiles with a tap, summed over the shifts
};

// Phase blocks of at most rows / block_channels phases, in output order; W phases are cut only where they do not fit. grad_input
// has one block. Boxes have one W phase each.
std::vector<BlockShifts> block_shifts(const GemmShape& shape, const Origins& origin, std::int32_t rows,
                                      std::int32_t block_channels, WayIn way = WayIn::gathered);

using ShiftAt = std::vector<ShiftRecord>::const_iterator;

// The span of [begin, end), neighbours among the shifts of a block that begin at `first`.
PatchSpan span_of(ShiftAt first, ShiftAt begin, ShiftAt end);

// All shifts of a block: those of a span read the same D and H phase, and are at most so many.
std::vector<PatchSpan> spans_of(const std::vector<ShiftRecord>& shifts, std::int32_t w_stride,
                                std::int64_t most_shifts = 1 << 30);

}  // namespace convt
