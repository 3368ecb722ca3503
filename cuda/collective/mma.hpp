#pragma once

#include "arch/lanes.hpp"
#include "arch/tf32.hpp"
#include "collective/tile_scheduler.hpp"

namespace convt {

// The products of one step: filter rows of a shift times the patch, moved by that shift.
template <TileConfig kConfig, Operand kOperand>
struct Mma {
  static constexpr int kRowTiles = kConfig.warp_rows() / kMmaRows;
  static constexpr int kPixelTiles = kConfig.warp_pixels() / kMmaPixels;
  static constexpr int kPixelPairs = kPixelTiles / 2;             // an ldmatrix.x4 feeds two pixel tiles
  static constexpr int kSteps = kConfig.planes / kMmaPlanes;
  static constexpr int kPlaneBytes = kConfig.rows * 16;           // of the filter
  static constexpr std::uint32_t kAllRows = (1u << kRowTiles) - 1;
  static_assert(kConfig.warp_rows() % kMmaRows == 0, "a warp's rows are whole MMA tiles");
  static_assert(kConfig.warp_pixels() % (2 * kMmaPixels) == 0, "a warp's pixels are whole pairs of MMA tiles");
  static_assert(kConfig.planes % (2 * kMmaPlanes) == 0, "a chunk is an even number of MMA steps");
  // The fragments of the next MMA step are on their way during this one's products; three products need no such help, and
  // have no registers left for it.
  static constexpr int kBuffers = kOperand == Operand::ieee ? 1 : 2;
  static constexpr int kCopies = filter_copies(kOperand);

  template <int kLanes>
  struct State {
    Lanes<float, kLanes> sum[kRowTiles][kPixelTiles][4];
    Lanes<std::uint32_t, kLanes>
        position[kPixelPairs];   // byte offset of this lane's ldmatrix row, patch and shift aside
    Lanes<std::uint32_t, kLanes> row;                     // the same for the filter
    // This step and the next: byte offset of the patch moved by the shift, and the row tiles that have a tap.
    Lanes<std::int32_t, kLanes> shifted;
    Lanes<std::uint32_t, kLanes> row_mask, entered_mask;
    Lanes<StepHeader, kLanes> next;
    Lanes<std::uint32_t, kLanes> a[kBuffers][kCopies][kRowTiles][4];
    Lanes<std::uint32_t, kLanes> b[kBuffers][kPixelPairs][4];
  };

  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void clear(Warp& warp, State<kLanes>& state) {
    const std::int32_t first_row = warp.index() % kConfig.warps_m * kConfig.warp_rows();
    warp.lanes([&](int lane) {
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
        for (int j = 0; j < kPixelTiles; ++j) {
#pragma unroll
          for (int k = 0; k < 4; ++k) state.sum[i][j][k][lane] = 0;
        }
      }
      // Matrices: rows 0-7 and 8-15 of plane 0, then of plane 1.
      state.row[lane] = (lane / 16) * kPlaneBytes + (first_row + lane % 16) * 16;
    });
  }

  // Where the positions of a tile lie in the patches of a shift group. Positions that do not exist repeat the last.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void place(Warp& warp, State<kLanes>& state, const GemmParams& params,
                                      const ShiftGroup& group) {
    const std::int32_t first = warp.index() / kConfig.warps_m * kConfig.warp_pixels();
    warp.lanes([&](int lane) {
#pragma unroll
      for (int pair = 0; pair < kPixelPairs; ++pair) {
        // Matrices: pixels 0-7 of planes 0 and 1, then pixels 8-15 of both.
        const std::int32_t position = first + pair * 16 + lane / 16 * 8 + lane % 8;
        const std::int32_t plane = lane / 8 % 2;
        state.position[pair][lane] = (plane * group.pixels + position_in_patch(params.axes, group, position)) * 16;
      }
    });
  }

  // The first step has none before it to announce it.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void announce(Warp& warp, State<kLanes>& state, const ShiftRecord& record) {
    warp.lanes([&](int lane) { state.next[lane] = {record.pixel_offset, record.row_mask}; });
  }

  // The step that was entered is the one that multiplies.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void begin(Warp& warp, State<kLanes>& state) {
    warp.lanes([&](int lane) { state.row_mask[lane] = state.entered_mask[lane]; });
  }

  // Turns to the step that was announced, in the patch at byte offset `patch`, and reads the announcement behind its filter.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void enter(Warp& warp, State<kLanes>& state, std::int32_t patch, std::int32_t header) {
    warp.lanes([&](int lane) {
      state.shifted[lane] = patch + state.next[lane].pixel_offset * 16;
      state.entered_mask[lane] = state.next[lane].row_mask;
      state.next[lane] = warp.template load<StepHeader>(header);
    });
  }

  // Fetches the fragments of an MMA step, two planes, into a buffer. `filter` is the byte offset of the slab.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void fetch(Warp& warp, State<kLanes>& state, std::int32_t filter,
                                      std::int32_t patch_plane_bytes, int step, int buffer) {
    const std::int32_t rows = filter + step * kMmaPlanes * kPlaneBytes;
    Lanes<std::uint32_t, kLanes> pixels[kPixelPairs];
    warp.lanes([&](int lane) {
#pragma unroll
      for (int pair = 0; pair < kPixelPairs; ++pair) {
        pixels[pair][lane] = state.position[pair][lane] + state.shifted[lane] + step * kMmaPlanes * patch_plane_bytes;
      }
    });
#pragma unroll
    for (int copy = 0; copy < kCopies; ++copy) {
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        warp.load_matrices(state.row, rows + copy * kConfig.planes * kPlaneBytes + i * kMmaRows * 16,
                           state.a[buffer][copy][i]);
      }
    }
#pragma unroll
    for (int pair = 0; pair < kPixelPairs; ++pair) {
      warp.load_matrices(pixels[pair], 0, state.b[buffer][pair]);
    }
  }

  // The products of an MMA step. Row tiles without a tap are skipped.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void multiply(Warp& warp, State<kLanes>& state, int buffer) {
    const std::uint32_t mask = state.row_mask[0] >> (warp.index() % kConfig.warps_m * kRowTiles) & kAllRows;
    if (mask == kAllRows) {
      products<true>(warp, state, mask, buffer);   // straight-line code, or the compiler moves nothing across
    } else if (mask != 0) {
      products<false>(warp, state, mask, buffer);
    }
  }

 private:
  template <bool kWhole, class Warp, int kLanes>
  CONVT_HOST_DEVICE static void products(Warp& warp, State<kLanes>& state, std::uint32_t mask, int buffer) {
    auto& a = state.a[buffer];
#pragma unroll
    for (int pair = 0; pair < kPixelPairs; ++pair) {
      auto& b = state.b[buffer][pair];
      if constexpr (kOperand == Operand::ieee) {
        Lanes<std::uint32_t, kLanes> high[4], low[4];
        warp.lanes([&](int lane) {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const Tf32Pair split = split_to_tf32(b[k][lane]);
            high[k][lane] = split.high;
            low[k][lane] = split.low;
          }
        });
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          if (!kWhole && !(mask >> i & 1)) continue;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            // Tensor cores truncate their sums: each step's is formed apart, small terms first, and added in float32.
            Lanes<float, kLanes> partial[4];
            warp.template multiply<Operand::tf32, true>(partial, a[1][i], high + 2 * half);
            warp.template multiply<Operand::tf32, false>(partial, a[0][i], low + 2 * half);
            warp.template multiply<Operand::tf32, false>(partial, a[0][i], high + 2 * half);
            warp.lanes([&](int lane) {
#pragma unroll
              for (int k = 0; k < 4; ++k) state.sum[i][2 * pair + half][k][lane] += partial[k][lane];
            });
          }
        }
      } else {
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          if (!kWhole && !(mask >> i & 1)) continue;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            warp.template multiply<kOperand, false>(state.sum[i][2 * pair + half], a[0][i], b + 2 * half);
          }
        }
      }
    }
  }
};

}  // namespace convt
