#pragma once

#include <compare>

#include "launch/gemm_shifts.hpp"

// The positions of a tile, and the pixels that it reads for them.
namespace convt {

// Of a warpgroup, positions are consecutive pixels of the patch: every patch has the halo of the largest, and as many W phases.
struct Packing {
  std::int32_t halo[kAxes] = {};
  std::int32_t w_phases = 1;
  std::int32_t even = 2;  // rows begin at multiples of so many positions: pairs of sums do not straddle them
  WayIn way = WayIn::gathered;
  std::int32_t step[kAxes] = {};  // of boxes: input pixels from one to the next, which a copy spans
  auto operator<=>(const Packing&) const = default;
};
// `vector`: pixels that copies of rows begin at the multiples of, before a patch's first.
Packing packing_of(const GemmShape& shape, const std::vector<BlockShifts>& blocks, std::int32_t even, WayIn way,
                   std::int32_t vector);

using Positions = std::array<std::int64_t, kTileAxes>;   // of the q-grids: N, D, H, W

// A tile's extents in q positions: N, D, H, W.
struct TileBox {
  std::int32_t tile[kTileAxes];
  bool packed = false;
  Packing packing{};
  std::int32_t run = 0;  // neighbouring pixels, and how many runs there are along every axis
  std::int32_t runs[kTileAxes] = {1, 1, 1, 1};
  std::int64_t positions() const { return std::int64_t(tile[0]) * tile[1] * tile[2] * tile[3]; }
};

// Boxes of at most `pixels` positions that are worth a look.
std::vector<TileBox> boxes(std::int32_t pixels, const Positions& q);

// Boxes whose positions, with the halo between them, are at most `pixels` consecutive pixels of their patches.
std::vector<TileBox> packed_boxes(std::int32_t pixels, const Positions& q, const Packing& packing);

// The patch of a box under a span of shifts. Pitches keep ldmatrix free of bank conflicts where that is cheap.
struct PatchShape {
  std::int32_t extent[kTileAxes];
  std::int32_t pitch[kTileAxes];
  std::int64_t pixels;
  double conflicts;  // factor on the reads
};
PatchShape patch_shape(const TileBox& box, const PatchSpan& span);

// Pixels from one of `planes` planes to the next: where channels lie side by side, threads that store vectors of one pixel, or of two
// neighbours, side by side meet in no bank, if that fits. No planes: as many as the patch has.
std::int64_t plane_pixels(const GemmShape& geometry, const PatchShape& patch, int planes, std::int64_t capacity);

}  // namespace convt
