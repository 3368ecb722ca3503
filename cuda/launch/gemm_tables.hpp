#pragma once

#include <array>
#include <cstring>
#include <vector>

#include "collective/gemm_params.hpp"
#include "launch/gemm_shape.hpp"

namespace convt {

using Origins = std::array<Origin, kAxes>;

// A tile's extents in q positions: N, D, H, W.
struct TileBox {
  std::int32_t tile[kTileAxes];
  // Of a warpgroup, positions are consecutive pixels of the patch: every patch has the halo of the largest, and as many W phases.
  bool packed = false;
  std::int32_t halo[kAxes] = {};
  std::int32_t w_phases = 1;
  std::int32_t even = 2;  // rows begin at multiples of so many positions: pairs of sums do not straddle them
  std::int32_t run = 0;  // neighbouring pixels, and how many runs there are along every axis
  std::int32_t runs[kTileAxes] = {1, 1, 1, 1};
  std::int64_t positions() const { return std::int64_t(tile[0]) * tile[1] * tile[2] * tile[3]; }
};

// Boxes of at most `pixels` positions that are worth a look.
std::vector<TileBox> boxes(std::int32_t pixels, const std::int64_t (&q)[kTileAxes]);

// Shifts that could share a patch, would it fit: those of a block, of grad_input the ones that read the same D and H phase.
struct PatchSpan {
  std::int32_t low[kAxes];  // of the shifts, D, H, W
  std::int32_t high[kAxes];
  std::int32_t w_phases;  // of the input
};

// One phase block and its shifts, before a tile's box is chosen.
struct BlockShifts {
  PhaseBlock block{};
  std::vector<std::int16_t> slots;  // [outer_count][w_count]
  std::vector<std::int32_t> phases;  // [slots]
  std::vector<ShiftRecord> shifts;  // without pixel offsets
  std::vector<PatchSpan> spans;
  std::int64_t row_tiles = 0;  // row tiles with a tap, summed over the shifts
};

// Phase blocks of at most rows / block_channels phases, in output order; W phases are cut only where they do not fit. grad_input
// has one block.
std::vector<BlockShifts> block_shifts(const GemmShape& shape, const Origins& origin, std::int32_t rows,
                                      std::int32_t block_channels);

// The patch of a box under a span of shifts. Pitches keep ldmatrix free of bank conflicts where that is cheap.
struct PatchShape {
  std::int32_t extent[kTileAxes];
  std::int32_t pitch[kTileAxes];
  std::int64_t pixels;
  double conflicts;  // factor on the reads
};
PatchShape patch_shape(const TileBox& box, const PatchSpan& span);

// Boxes whose positions, with the halo between them, are at most `pixels` consecutive pixels of their patches.
std::vector<TileBox> packed_boxes(std::int32_t pixels, const std::int64_t (&q)[kTileAxes],
                                  const std::vector<BlockShifts>& blocks, std::int32_t even);

// Pixels from one of `planes` planes to the next: where channels lie side by side, threads that store vectors of one pixel, or of two
// neighbours, side by side meet in no bank, if that fits. No planes: as many as the patch has.
std::int64_t plane_pixels(const GemmShape& geometry, const PatchShape& patch, int planes, std::int64_t capacity);

// Cuts the shifts of a block into groups of at most `most_shifts` whose patch has at most `capacity` pixels, reordering them. Shift indices of the
// groups are relative to the block. Empty when a single shift does not fit.
struct PatchGroup {
  ShiftGroup group;  // without the place of its row's table
  std::vector<std::int32_t> w_phases;  // ascending, from the first
};
std::vector<PatchGroup> group_shifts(const GemmShape& shape, BlockShifts& block, const TileBox& box,
                                     std::int64_t capacity, int planes, std::int64_t most_shifts = 1 << 30);

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
                       std::int64_t capacity, int planes, const Leaving& leaving);

}  // namespace convt
