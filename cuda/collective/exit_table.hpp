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

// Sums of warpgroups leave through shared memory, slice by slice: who keeps them turns a slice there (`turn`), and that warp or
// another stores it (`leave`), from what it has found out about the tile (`find`). This is for one warp that does all.
template <class Exit, class Warp, int kLanes>
CONVT_HOST_DEVICE void write_slices(Warp& warp, const typename Exit::Products::template State<kLanes>& state,
                                    const Lanes<float, kLanes> (&bias)[2], const GemmParams& params, const Tile& tile,
                                    const PhaseBlock& block) {
  const std::int32_t own = params.shared.slices + warp.index() * kExitBytes;
  typename Exit::template Places<kLanes> places;
  Exit::find(warp, places, params, tile, block, warp.index());
  warp.sync();
#pragma unroll
  for (int slice = 0; slice < Exit::kSlices; ++slice) {
    Exit::turn(warp, state, bias, params, own, slice);
    warp.sync();
    Exit::leave(warp, places, params, own, slice, warp.index());
    warp.sync();
  }
}

// Of rows 8 i + lane / 4 of a warp's sixteen.
template <TileConfig kConfig, Operand kOperand, class Warp>
CONVT_HOST_DEVICE float exit_bias(Warp& warp, const GemmParams& params, const Tile& tile, std::int32_t row) {
  if (params.bias == nullptr) return 0;
  const std::int32_t place = params.order.at(row).channel;
  const std::int32_t channel = tile.channel_block * params.block_channels + place;
  if (place >= params.block_channels || channel >= params.out_channels) return 0;
  const std::int64_t at = std::int64_t(tile.conv_group) * params.out_channels + channel;
  return Epilogue<kConfig, kOperand>::to_float(
      warp, static_cast<const char*>(params.bias) + at * params.bias_stride * operand_bytes(kOperand));
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
