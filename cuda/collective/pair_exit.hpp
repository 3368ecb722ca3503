#pragma once

#include "collective/exit_table.hpp"

namespace convt {

// Sums of warpgroups to an output without phases. The 16 rows of a warp are turned in shared memory, a slice of pixels at a time, so
// that stores run along rows of the output.
template <TileConfig kConfig, Operand kOperand>
struct PairExit {
  using Products = Mma<kConfig, kOperand>;
  using Output = Epilogue<kConfig, kOperand>;
  using Table = ExitTable<kConfig, kOperand>;
  using Word = Pair<kOperand>;
  static constexpr int kBytes = operand_bytes(kOperand);
  static constexpr int kSlice = 128 / kBytes;          // pixels
  static constexpr int kAcross = kSlice / 2;           // lanes along a row
  static constexpr int kTogether = 32 / kAcross;       // rows that a warp stores at a time
  static constexpr int kBatch = 8;                     // words that a lane loads before it stores any
  static constexpr int kPitch = 128 + kExitPadding * kBytes;   // bytes of a row: lanes meet in no bank
  static_assert(kMmaRows * kPitch <= kExitBytes);

  static constexpr int kSlices = kConfig.warp_pixels() / kSlice;

  // What a warp knows of its tile.
  struct Target {
    char* first;                        // of the tile's first position, in the first row
    std::int32_t channels;              // that exist from there on
    std::int32_t count[kTileAxes];      // of positions
    bool whole;
  };
  template <int kLanes>
  using Places = Target;

  // `of`: the warp whose sums they are.
  template <class Warp>
  CONVT_HOST_DEVICE static void find(Warp&, Target& target, const GemmParams& params, const Tile& tile,
                                     const PhaseBlock&, std::int32_t of) {
    const std::int32_t first_row = of % kConfig.warps_m * kMmaRows;
    const std::int32_t first_of_block = tile.channel_block * params.block_channels;
    const std::int32_t left = params.out_channels - first_of_block;
    target.channels = (left < params.block_channels ? left : params.block_channels) - first_row;
    const std::int64_t first_channel = std::int64_t(tile.conv_group) * params.out_channels + first_of_block + first_row;
    std::int64_t origin = tile.q[0] * params.output_strides[0] + first_channel * params.output_strides[1];
    target.whole = tile.count[0] == params.axes[0].tile;
    for (int axis = 1; axis < kTileAxes; ++axis) {
      origin += (tile.q[axis] - params.axes[axis].origin) * params.output_strides[1 + axis];
      target.whole = target.whole && tile.count[axis] == params.axes[axis].tile;
    }
    for (int axis = 0; axis < kTileAxes; ++axis) target.count[axis] = tile.count[axis];
    target.first = static_cast<char*>(params.output) + origin * kBytes;
  }

  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void turn(Warp& warp, const typename Products::template State<kLanes>& state,
                                     const Lanes<float, kLanes> (&bias)[2], const GemmParams&, std::int32_t own,
                                     int slice) {
    warp.lanes([&](int lane) {
#pragma unroll
      for (int j = 0; j < kSlice / kMmaPixels; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const auto& sum = state.sum[0][slice * (kSlice / kMmaPixels) + j];
          const Word word = pack_pair<kOperand>(sum[i * 2][lane] + bias[i][lane], sum[i * 2 + 1][lane] + bias[i][lane]);
          warp.template store<Word>(
              own + (i * 8 + lane / 4) * kPitch + (j * kMmaPixels / 2 + lane % 4) * std::int32_t(sizeof(Word)), word);
        }
      }
    });
  }

  template <class Warp>
  CONVT_HOST_DEVICE static void leave(Warp& warp, const Target& tile, const GemmParams& params, std::int32_t own,
                                      int slice, std::int32_t of) {
    const std::int32_t first_pair = of / kConfig.warps_m * kConfig.warp_pixels() / 2 + slice * kAcross;
    const std::int64_t channel_bytes = params.output_strides[1] * kBytes;
    warp.lanes([&](int lane) {
      const ExitPair exit = warp.template load<ExitPair>(Table::at(params, first_pair + lane % kAcross));
      std::int32_t count = exit.count;
      if (!tile.whole) {
        const std::int32_t along = tile.count[3] - (exit.hw & 0xffff);
        const bool inside =
            exit.hw >> 16 < tile.count[2] && (exit.nd & 0xffff) < tile.count[1] && exit.nd >> 16 < tile.count[0];
        count = !inside ? 0 : along < count ? along : count;
      }
      char* target = tile.first + exit.offset + lane / kAcross * channel_bytes;
      const std::int32_t from = own + lane / kAcross * kPitch + lane % kAcross * std::int32_t(sizeof(Word));
      // Rows of which this lane stores a pair, its first and its second.
      const std::int32_t rows = tile.channels - lane / kAcross;
      const bool both = params.way_out == WayOut::pairs && count > 1;
      const std::int32_t pairs = both ? rows : 0, lows = !both && count > 0 ? rows : 0,
                         highs = !both && count > 1 ? rows : 0;
#pragma unroll
      for (int first = 0; first < kMmaRows; first += kBatch * kTogether) {
        Word word[kBatch];
#pragma unroll
        for (int at = 0; at < kBatch; ++at) {
          word[at] = warp.template load<Word>(from + (first + at * kTogether) * kPitch);
        }
#pragma unroll
        for (int at = 0; at < kBatch; ++at) {
          const int row = first + at * kTogether;
          if (row < pairs) warp.store_global_pair(target, word[at]);
          if (row < lows) store_half(warp, target, word[at]);
          if (row < highs) store_half(warp, target + kBytes, word[at] >> (8 * kBytes));
          target += kTogether * channel_bytes;
        }
      }
    });
  }

 private:
  template <class Warp>
  CONVT_HOST_DEVICE static void store_half(Warp& warp, char* target, Word word) {
    using Half = std::conditional_t<kBytes == 4, std::uint32_t, std::uint16_t>;
    warp.template store_global<Half>(target, Half(word));
  }
};

}  // namespace convt
