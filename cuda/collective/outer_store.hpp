#pragma once

#include "arch/half.hpp"
#include "collective/outer_fragments.hpp"

namespace convt {

// Sums of a thread block to memory: partial sums in float32, or the gradient itself.
template <OuterConfig kConfig, Operand kOperand, Innermost kInner>
struct OuterStore {
  using Fragments = OuterFragments<kConfig, kOperand, kInner>;

  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void write(Warp& warp, const typename Fragments::template State<kLanes>& state,
                                      const OuterParams& params, const WeightTile& tile, const OuterBlock& block,
                                      const char* tables) {
    const auto [origin, rows, channels, taps] = corner_of(params, tile, block, tables);
    const int bytes = params.partial ? 4 : kBytes;
    char* const base = static_cast<char*>(params.result) + origin * bytes;
    warp.lanes([&](int lane) {
#pragma unroll
      for (int at = 0; at < 2 * Fragments::kTiles; ++at) {
        const auto pair = Fragments::pair_of(params, warp.index(), at / 2, at % 2, block.taps);
        const std::int32_t channel = pair.octet * kOctet + lane / 4;
        if (!pair.exists || channel >= channels) continue;
        const std::int64_t tap = warp.template reread<std::int64_t>(taps + pair.tap * sizeof(OuterTap));
        char* target = base + (tap + channel * params.column_stride + lane % 4 * 2 * params.row_stride) * bytes;
#pragma unroll
        for (int j = 0; j < Fragments::kColumns; ++j) {
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            if (j * kOctet + lane % 4 * 2 + k >= rows) continue;
            const float sum = state.sum[at / 2][j][at % 2 * 2 + k][lane];
            char* const own = target + k * params.row_stride * bytes;
            if (is_float32(kOperand) || params.partial) {
              warp.template store_global<float>(own, sum);
            } else {
              warp.template store_global<std::uint16_t>(own, narrow<kOperand>(sum));
            }
          }
          target += kOctet * params.row_stride * bytes;
        }
      }
    });
  }

  // Through shared memory, [input channel][output channel][tap]: where nothing else is needed of it any more.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void stage(Warp& warp, const typename Fragments::template State<kLanes>& state,
                                      const OuterParams& params, std::int32_t taps) {
    warp.lanes([&](int lane) {
#pragma unroll
      for (int at = 0; at < 2 * Fragments::kTiles; ++at) {
        const auto pair = Fragments::pair_of(params, warp.index(), at / 2, at % 2, taps);
        if (!pair.exists) continue;
        std::int32_t target = lane % 4 * 2 * params.staged_pitch + (pair.octet * kOctet + lane / 4) * taps + pair.tap;
#pragma unroll
        for (int j = 0; j < Fragments::kColumns; ++j) {
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            const float sum = state.sum[at / 2][j][at % 2 * 2 + k][lane];
            const std::int32_t own = (target + k * params.staged_pitch) * kBytes;
            if constexpr (is_float32(kOperand)) {
              warp.template store<float>(own, sum);
            } else {
              warp.template store<std::uint16_t>(own, narrow<kOperand>(sum));
            }
          }
          target += kOctet * params.staged_pitch;
        }
      }
    });
  }
  template <class Warp>
  CONVT_HOST_DEVICE static void write_staged(Warp& warp, const OuterParams& params, const WeightTile& tile,
                                             const OuterBlock& block, const char* tables) {
    using Element = std::conditional_t<is_float32(kOperand), std::uint32_t, std::uint16_t>;
    constexpr int together = 8;
    const Corner corner = corner_of(params, tile, block, tables);
    char* const base = static_cast<char*>(params.result) + corner.origin * kBytes;
    const std::int32_t sums = params.block_octets * kOctet * block.taps;
    const std::int32_t rows = corner.rows < kConfig.channels ? corner.rows : kConfig.channels;
    warp.lanes([&](int lane) {
      for (std::int32_t at = warp.thread(lane); at < sums; at += kConfig.threads()) {
        const std::int32_t channel = at / block.taps, tap = at % block.taps;
        if (channel >= corner.channels) break;
        char* target = base + (warp.template reread<std::int64_t>(corner.taps + tap * sizeof(OuterTap)) +
                               channel * params.column_stride) *
                                  kBytes;
#pragma unroll 1
        for (std::int32_t row = 0; row < rows; row += together) {
          Element own[together];
#pragma unroll
          for (int k = 0; k < together; ++k) {
            const std::int32_t from = ((row + k < rows ? row + k : row) * params.staged_pitch + at) * kBytes;
            if constexpr (is_float32(kOperand)) {
              own[k] = warp.template load<std::uint32_t>(from);
            } else {
              own[k] = Element(warp.load_half(from));
            }
          }
#pragma unroll
          for (int k = 0; k < together; ++k) {
            if (row + k < rows) warp.template store_global<Element>(target, own[k]);
            target += params.row_stride * kBytes;
          }
        }
      }
    });
  }

 private:
  static constexpr int kBytes = operand_bytes(kOperand);
  // Of a thread block's part of the result: its first element, the channels from there on, and where its taps are told.
  struct Corner {
    std::int64_t origin;
    std::int32_t rows, channels;
    const char* taps;
  };
  CONVT_HOST_DEVICE static Corner corner_of(const OuterParams& params, const WeightTile& tile, const OuterBlock& block,
                                            const char* tables) {
    return {tile.split * params.split_stride + tile.conv_group * params.group_stride +
                std::int64_t(tile.row_block) * kConfig.channels * params.row_stride +
                std::int64_t(tile.channel_block) * params.block_octets * kOctet * params.column_stride,
            params.in_channels - tile.row_block * kConfig.channels,
            params.out_channels - tile.channel_block * params.block_octets * kOctet,
            tables + params.table.taps + block.first_tap * sizeof(OuterTap)};
  }
};

}  // namespace convt
