#pragma once

#include "collective/gemm_params.hpp"

namespace convt {

// What one thread block computes.
struct Tile {
  std::int64_t q[kTileAxes];        // first position: batch, D, H, W
  std::int32_t count[kTileAxes];    // positions that exist
  std::int32_t conv_group;
  std::int32_t channel_block;
  std::int32_t phase_block;
  std::int32_t split;
  std::int32_t index;               // of the tile, splits not counted
};

// Neighbouring thread blocks share a patch: they differ in split, phase block and channel block first.
CONVT_HOST_DEVICE inline Tile tile_of(const GemmParams& params, std::int32_t block) {
  Tile tile;
  const auto next = [&block](const FastDivisor& by) {
    const std::int32_t quotient = by.quotient(block), digit = by.remainder(block, quotient);
    block = quotient;
    return digit;
  };
  tile.split = next(params.by_splits);
  tile.index = block;
  tile.phase_block = next(params.by_phase_blocks);
  tile.channel_block = next(params.by_channel_blocks);
  for (int axis = kTileAxes - 1; axis >= 0; --axis) {
    const TileAxis& along = params.axes[axis];
    const std::int64_t first = std::int64_t(next(along.by_tiles)) * along.tile;
    const std::int64_t left = along.q_count - first;
    tile.q[axis] = along.q_begin + first;
    tile.count[axis] = left < along.tile ? std::int32_t(left) : along.tile;
  }
  tile.conv_group = block;
  return tile;
}

// The patch pixel of a tile's position. Positions that do not exist repeat the last.
CONVT_HOST_DEVICE inline std::int32_t position_in_patch(const TileAxis (&axes)[kTileAxes], const ShiftGroup& group,
                                                        std::int32_t position) {
  const std::int32_t last = axes[0].tile * axes[1].tile * axes[2].tile * axes[3].tile - 1;
  std::int32_t rest = position < last ? position : last, pixel = 0;
#pragma unroll
  for (int axis = kTileAxes - 1; axis > 0; --axis) {
    const std::int32_t outer = axes[axis].by_tile.quotient(rest);
    pixel += axes[axis].by_tile.remainder(rest, outer) * group.pitch[axis];
    rest = outer;
  }
  return pixel + rest * group.pitch[0];
}

// The part of the reduction that a split does, in patches: shift group by shift group, chunk by chunk.
struct PatchRange {
  std::int32_t begin;
  std::int32_t end;
};

CONVT_HOST_DEVICE inline PatchRange patches_of(const GemmParams& params, const PhaseBlock& block, std::int32_t split) {
  if (params.splits == 1) return {0, block.groups * params.chunks};
  const std::int64_t patches = std::int64_t(block.groups) * params.chunks;
  return {std::int32_t(patches * split / params.splits), std::int32_t(patches * (split + 1) / params.splits)};
}

}  // namespace convt
