#pragma once

#include "collective/epilogue.hpp"

namespace convt {

// Digits of a position along an axis whose output pixels of a phase exist: from `low` to before `high`, of those that a tile has.
struct ExitDigits {
  std::int32_t low, high;
};
// `begin`: the pixel of digit 0.
CONVT_HOST_DEVICE inline ExitDigits existing_digits(const TileAxis& along, std::int64_t begin, std::int32_t count) {
  const std::int64_t left = along.output - begin;
  ExitDigits digits{begin < 0 ? along.by_stride.quotient(std::int32_t(along.stride - 1 - begin)) : 0, count};
  if (left < std::int64_t(count) * along.stride) {
    digits.high = left > 0 ? along.by_stride.quotient(std::int32_t(left + along.stride - 1)) : 0;
  }
  return digits;
}

// Two digits of 16 bits at a time: at least `low` and below `high - kExitOffset` where the result is kExitTops. They borrow nothing
// of each other.
inline constexpr std::uint32_t kExitTops = 0x80008000u, kExitOffset = 0x7fff7fffu;
CONVT_HOST_DEVICE inline std::uint32_t tops_within(std::uint32_t digits, std::uint32_t low, std::uint32_t high) {
  return ((digits | kExitTops) - low) & (high - digits) & kExitTops;
}

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
