#pragma once

#include <cstring>
#include <optional>
#include <vector>

#include "launch/gemm_boxes.hpp"

namespace convt {

// Spans are cut into groups whose patch has at most `capacity` pixels, with planes as in plane_pixels.
struct PatchLimits {
  std::int64_t capacity;
  int planes;
};

// Cuts the shifts of a block, reordering them within their spans. Shift indices of the groups are relative to the block. Empty when a
// single shift does not fit.
struct PatchGroup {
  ShiftGroup group;  // without the place of its row's table
  std::vector<std::int32_t> w_phases;  // ascending, from the first
};
std::vector<PatchGroup> group_shifts(const GemmShape& shape, BlockShifts& block, const TileBox& box,
                                     const PatchLimits& limits);

// What these groups come to, for much less. Nothing when a single shift does not fit.
struct PatchTotals {
  std::int64_t groups = 0;
  std::int64_t pixels = 0;              // of all patches
  std::int64_t most_pixels = 0;         // of one
  std::int64_t most_row_pixels = 0;     // of all W phases
  double conflicts = 1;                 // of the spans, were none cut
};
std::optional<PatchTotals> patch_totals(const GemmShape& shape, const BlockShifts& block, const TileBox& box,
                                        const PatchLimits& limits);

// Puts the RowPhases of a group with several W phases behind `rows`. Returns its byte offset there plus 1, or 0 when there is one.
std::int32_t add_row(std::vector<std::int32_t>& rows, const PatchGroup& made);

// Appends a table at a multiple of 16 bytes; returns where.
template <class T>
std::int32_t append_table(std::vector<char>& bytes, const std::vector<T>& table) {
  const std::size_t offset = (bytes.size() + 15) / 16 * 16;
  bytes.resize(offset + table.size() * sizeof(T));
  if (!table.empty()) std::memcpy(bytes.data() + offset, table.data(), table.size() * sizeof(T));
  return std::int32_t(offset);
}

// What the kernels read: all blocks' tables side by side.
struct GemmTables {
  std::vector<char> bytes;
  TableLayout layout{};
  std::int32_t steps = 0;  // shifts of all blocks
  std::int32_t most_pixels = 0;  // of any group's patch
  std::int32_t most_phases = 0;  // of any block, empty ones included
  bool interleaved = false;  // some patch has several W phases
};
// How the epilogue leaves: the plan's say.
struct Leaving {
  int vector;  // output elements in 16 bytes
  int threads;
  std::int32_t block_channels;
  std::int64_t channel_stride;  // of the output, elements
  bool channels_inner;  // stores run along channels, not along W
};
GemmTables gemm_tables(const GemmShape& shape, std::vector<BlockShifts> blocks, const TileBox& box,
                       const PatchLimits& limits, const Leaving& leaving);

}  // namespace convt
