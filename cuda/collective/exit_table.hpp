#pragma once

#include "collective/epilogue.hpp"

namespace convt {

// Where pairs of positions of a tile of warpgroups go: found once, for all tiles.
template <TileConfig kConfig, Operand kOperand>
struct ExitTable {
  static constexpr int kBytes = operand_bytes(kOperand);
  // Digits of positions that are dropped: beyond every tile.
  static constexpr std::int32_t kNowhere = 0x3fff3fff;

  CONVT_HOST_DEVICE static std::int32_t at(const GemmParams& params, std::int32_t pair) {
    return params.shared.exits + pair * std::int32_t(sizeof(ExitPair));
  }

  template <class Warp>
  CONVT_HOST_DEVICE static void clear(Warp& warp, const GemmParams& params) {
    warp.lanes([&](int lane) {
      for (std::int32_t pair = warp.thread(lane); pair < kConfig.pixels / 2; pair += kConfig.threads()) {
        warp.template store<ExitPair>(at(params, pair), ExitPair{0, kNowhere, kNowhere, 0});
      }
    });
  }

  template <class Warp>
  CONVT_HOST_DEVICE static void tabulate(Warp& warp, const GemmParams& params) {
    const TileAxis* const axes = params.axes;
    const std::int32_t across = (axes[3].tile + 1) / 2, pairs = axes[0].tile * axes[1].tile * axes[2].tile * across;
    warp.lanes([&](int lane) {
      for (std::int32_t index = warp.thread(lane); index < pairs; index += kConfig.threads()) {
        std::int32_t digit[kTileAxes], rest = index / across, position = 0, offset = 0;
        digit[3] = index % across * 2;
        for (int axis = 2; axis >= 0; --axis) {
          digit[axis] = rest % axes[axis].tile;
          rest /= axes[axis].tile;
        }
        for (int axis = 0; axis < kTileAxes; ++axis) {
          position += axes[axis].position(digit[axis]);
          offset += digit[axis] * axes[axis].stride * std::int32_t(params.output_strides[axis == 0 ? 0 : 1 + axis]);
        }
        const std::int32_t left = axes[3].tile - digit[3];
        const ExitPair exit{offset * kBytes, digit[2] << 16 | digit[3], digit[0] << 16 | digit[1], left < 2 ? left : 2};
        warp.template store<ExitPair>(at(params, position / 2), exit);
      }
    });
  }
};

}  // namespace convt
