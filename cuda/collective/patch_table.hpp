#pragma once

#include "arch/lanes.hpp"
#include "collective/tile_scheduler.hpp"

// Where the pixels of a patch lie in memory. Params have the axes and the strides of what the patch is fetched from.
namespace convt {

// Input coordinate of the first patch pixel along D, H or W.
template <class Params>
CONVT_HOST_DEVICE std::int64_t first_of(const Params& params, const Tile& tile, const ShiftGroup& group, int axis) {
  return params.axes[1 + axis].step * (tile.q[1 + axis] - group.high[axis]) + group.offset[axis];
}

// Address of the first patch pixel, `channel_offset` elements from channel 0. Out of the tensor where the patch is: never read there.
template <int kBytes, class Params>
CONVT_HOST_DEVICE const char* patch_origin(const Params& params, const Tile& tile, const ShiftGroup& group,
                                           std::int64_t channel_offset) {
  std::int64_t offset = tile.q[0] * params.input_strides[0] + channel_offset;
  for (int axis = 0; axis < kAxes; ++axis) {
    offset += first_of(params, tile, group, axis) * params.input_strides[2 + axis];
  }
  return static_cast<const char*>(params.input) + offset * kBytes;
}

// Writes each thread's own pixels into the table: offset from the patch's origin in elements, or -1 outside the input. Where W
// phases alternate in memory so do a thread's neighbours, and a second table, unless it is at 0, says where in the patch a pixel
// goes: in all patches of a group to the same place.
template <int kThreads, class Warp, class Params>
CONVT_HOST_DEVICE void tabulate_patch(Warp& warp, const Params& params, const Tile& tile, const ShiftGroup& group,
                                      const char* tables, std::int32_t pixel_table, std::int32_t place_table) {
  std::int32_t low[kTileAxes],
      high[kTileAxes];   // input pixels from the patch's first; nothing beyond its last is asked for
  for (int axis = 0; axis < kTileAxes; ++axis) {
    const std::int64_t first = axis == 0 ? tile.q[0] : first_of(params, tile, group, axis - 1);
    const std::int64_t left = params.axes[axis].input - first;
    constexpr std::int64_t most = 0x7fffffff;
    low[axis] = std::int32_t(first < 0 ? (-first < most ? -first : most) : 0);
    high[axis] = std::int32_t(left < most ? (left < 0 ? 0 : left) : most);
  }
  warp.lanes([&](int lane) {
#pragma unroll 1
    for (std::int32_t pixel = warp.thread(lane); pixel < group.pixels; pixel += kThreads) {
      std::int32_t rest = pixel, offset = 0, place = pixel;
      bool there = true, inside = true;   // in the patch, and in the input
#pragma unroll
      for (int axis = 0; axis < kTileAxes; ++axis) {
        std::int32_t at = rest, beyond = 0;
        if (axis < kTileAxes - 1) {
          at = group.by_pitch[axis].quotient(rest);
          rest = group.by_pitch[axis].remainder(rest, at);
        } else if (group.row != 0 && there) {
          // Read anew for every pixel, which is rare enough: kept, it would take the registers of the main loop.
          const char* const phases = tables + group.row;
          const RowPhases row = warp.template reread<RowPhases>(phases);
          if (rest < row.columns * row.count) {
            at = row.by_count.quotient(rest);
            const std::int32_t phase = row.by_count.remainder(rest, at);
            place += phase * row.columns + at - rest;
            beyond = warp.template reread<std::int32_t>(phases + sizeof(RowPhases) + phase * 4);
          }
        }
        there = there && at < group.extent[axis];
        at = at * params.axes[axis].step + beyond;
        inside = inside && at >= low[axis] && at < high[axis];
        offset += at * std::int32_t(params.input_strides[axis == 0 ? 0 : axis + 1]);
      }
      if (place_table) {
        warp.template store<std::int32_t>(place_table + pixel * 4, place);
      }
      warp.template store<std::int32_t>(pixel_table + pixel * 4, there && inside ? offset : -1);
    }
  });
}

}  // namespace convt
