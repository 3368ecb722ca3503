#pragma once

#include "collective/mma.hpp"

namespace convt {

// Split reductions: every split leaves its accumulators in memory, and whoever arrives last adds all of them in the order of the
// splits, so that the sum does not depend on who that is.
template <TileConfig kConfig, Operand kOperand>
struct SplitSum {
  using Products = Mma<kConfig, kOperand>;
  static constexpr int kPerThread = Products::kRowTiles * Products::kPixelTiles * 4;
  static constexpr int kTileFloats = kPerThread * kConfig.threads();

  // Returns false to the thread blocks that are not the last of their tile.
  template <class Executor, class States>
  CONVT_HOST_DEVICE static bool join(Executor& block, States& states, const GemmParams& params, const Tile& tile,
                                     int barrier) {
    using Warp = typename Executor::Warp;
    using WarpState = typename States::State;
    float* const all = params.partial + std::int64_t(tile.index) * params.splits * kTileFloats;
    float* const own = all + std::int64_t(tile.split) * kTileFloats;
    block.each_warp(states, [=](Warp& warp, WarpState& state) {
      each(warp, state, own, [&](float* cell, float& sum) { warp.store_global(reinterpret_cast<char*>(cell), sum); });
    });
    if (!block.arrive_last(params.arrived + tile.index, params.splits, barrier)) return false;
    const std::int32_t splits = params.splits;
    block.each_warp(states, [=](Warp& warp, WarpState& state) {
      each(warp, state, all, [&](float*, float& sum) { sum = 0; });
#pragma unroll 1
      for (std::int32_t split = 0; split < splits; ++split) {
        each(warp, state, all + std::int64_t(split) * kTileFloats,
             [&](float* cell, float& sum) { sum += warp.template fresh<float>(cell); });
      }
    });
    return true;
  }

 private:
  template <class Warp, class WarpState, class Visit>
  CONVT_HOST_DEVICE static void each(Warp& warp, WarpState& state, float* base, Visit visit) {
    warp.lanes([&](int lane) {
#pragma unroll
      for (int i = 0; i < Products::kRowTiles; ++i) {
#pragma unroll
        for (int j = 0; j < Products::kPixelTiles; ++j) {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const int index = (i * Products::kPixelTiles + j) * 4 + k;
            visit(base + index * kConfig.threads() + warp.thread(lane), state.products.sum[i][j][k][lane]);
          }
        }
      }
    });
  }
};

}  // namespace convt
