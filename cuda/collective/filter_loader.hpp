#pragma once

#include "collective/gemm_params.hpp"

namespace convt {

// The packed filter is a linear stream in the order of its use: one slab per step, copied ahead of it asynchronously.
template <TileConfig kConfig, Operand kOperand>
struct FilterLoader {
  static constexpr int kSlabBytes = kConfig.slab_bytes(kOperand);
  static constexpr int kHeader = kConfig.slab_rows_bytes(kOperand);   // byte offset in a slab

  CONVT_HOST_DEVICE static constexpr std::int32_t stage_offset(std::int32_t stage) { return stage * kSlabBytes; }

  template <class Warp>
  CONVT_HOST_DEVICE static void load(Warp& warp, const char* slab, std::int32_t offset) {
    constexpr int pieces = kSlabBytes / 16, rounds = (pieces + kConfig.threads() - 1) / kConfig.threads();
    warp.lanes([&](int lane) {
      const int first = warp.thread(lane);
#pragma unroll
      for (int round = 0; round < rounds; ++round) {
        const int piece = first + round * kConfig.threads();
        if (pieces % kConfig.threads() == 0 || round + 1 < rounds || piece < pieces) {
          warp.copy_async16(lane, offset + piece * 16, slab + piece * 16);
        }
      }
    });
  }
};

}  // namespace convt
