#pragma once

#include "collective/exit_table.hpp"

namespace convt {

// Sums of warpgroups to an output whose channels are innermost. The 16 rows of a warp are turned in shared memory, a slice of
// positions at a time, so that a lane stores 16 bytes of channels of one pixel. Blocks of channels are whole pieces of 16 bytes, so
// that a piece has one phase, and every phase is reached by a tap.
template <TileConfig kConfig, Operand kOperand>
struct PixelExit {
  using Products = Mma<kConfig, kOperand>;
  using Output = Epilogue<kConfig, kOperand>;
  using Table = ExitTable<kConfig, kOperand>;
  static constexpr int kBytes = operand_bytes(kOperand);
  static constexpr int kVector = operand_vector(kOperand);
  static constexpr int kPieces = kMmaRows / kVector;          // of a position: lanes side by side
  static constexpr int kPitch = kMmaRows * kBytes;            // bytes of a position
  static constexpr int kSlice = 2048 / kPitch;                // positions
  static constexpr int kTogether = 32 / kPieces;              // positions that a warp stores at a time
  static constexpr int kAtATime = kSlice / kTogether;         // stores of a slice
  static_assert(kSlice * kPitch <= kExitBytes);

  // The pixels that a piece of every position has: where they begin, and which of them exist.
  struct Piece {
    char* target;              // of the tile's first position
    std::uint32_t low_hw, high_hw, low_nd, high_nd;   // of digits, 16 bits each: see `inside`
    std::int32_t bytes;        // of the piece that exist
  };

  static constexpr int kSlices = kConfig.warp_pixels() / kSlice;
  template <int kLanes>
  using Places = Lanes<Piece, kLanes>;

  // `of`: the warp whose sums they are.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void find(Warp& warp, Lanes<Piece, kLanes>& pieces, const GemmParams& params,
                                     const Tile& tile, const PhaseBlock& block, std::int32_t of) {
    const std::int32_t first_row = of % kConfig.warps_m * kMmaRows;
    warp.lanes([&](int lane) {
      pieces[lane] = piece_of(warp, params, tile, block, first_row + lane % kPieces * kVector, position_of(lane) % 2);
    });
  }

  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void turn(Warp& warp, const typename Products::template State<kLanes>& state,
                                     const Lanes<float, kLanes> (&bias)[2], const GemmParams&, std::int32_t own,
                                     int slice) {
    constexpr int kTiles = kSlice / kMmaPixels;
    if constexpr (kBytes == 2) {
      Lanes<std::uint32_t, kLanes> row;   // which this lane writes to
      warp.lanes([&](int lane) { row[lane] = std::uint32_t(written_to(lane)); });
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        Lanes<std::uint32_t, kLanes> words[4];
        warp.lanes([&](int lane) {
#pragma unroll
          for (int matrix = 0; matrix < 4; ++matrix) {
            const auto& sum = state.sum[0][slice * kTiles + j + matrix / 2];
            const int i = matrix % 2;
            words[matrix][lane] =
                pack_pair<kOperand>(sum[i * 2][lane] + bias[i][lane], sum[i * 2 + 1][lane] + bias[i][lane]);
          }
        });
        warp.store_transposed(row, own + j * kMmaPixels * kPitch, words);
      }
    } else {
      warp.lanes([&](int lane) {
        const std::int32_t row = written_to(lane);
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const std::int32_t at = own + (row ^ (k / 2 * 32)) + (j * kMmaPixels + k % 2 * 4) * kPitch;
            warp.template store<float>(at, state.sum[0][slice * kTiles + j][k][lane] + bias[k / 2][lane]);
          }
        }
      });
    }
  }

  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void leave(Warp& warp, const Lanes<Piece, kLanes>& pieces, const GemmParams& params,
                                      std::int32_t own, int slice, std::int32_t of) {
    const std::int32_t first_position = of / kConfig.warps_m * kConfig.warp_pixels() + slice * kSlice;
    warp.lanes([&](int lane) {
      const Piece& piece = pieces[lane];
      const std::int32_t from = own + lane / kPieces * kPitch + (lane % kPieces ^ swizzle(lane / kPieces)) * 16;
      const std::int32_t exits = Table::at(params, (first_position + position_of(lane)) / 2);
      constexpr std::int32_t kNext = kTogether / 2 * sizeof(ExitPair);
      if (piece.bytes == 16 && params.store_bytes == 16) {
        ExitPair exit[kAtATime];
        Vector16 value[kAtATime];
#pragma unroll
        for (int at = 0; at < kAtATime; ++at) {
          exit[at] = warp.template load<ExitPair>(exits + at * kNext);
          value[at] = warp.template load<Vector16>(from + at * kTogether * kPitch);
        }
#pragma unroll
        for (int at = 0; at < kAtATime; ++at) {
          if (inside(piece, exit[at])) warp.store_global16(piece.target + exit[at].offset, value[at]);
        }
      } else {
#pragma unroll 1
        for (int at = 0; at < kAtATime; ++at) {
          const ExitPair exit = warp.template load<ExitPair>(exits + at * kNext);
          const Vector16 value = warp.template load<Vector16>(from + at * kTogether * kPitch);
          if (inside(piece, exit))
            store_words(warp, piece.target + exit.offset, value, piece.bytes, params.store_bytes);
        }
      }
    });
  }

 private:
  // The slice holds 8 positions behind each other, of float32 the even ones first; neighbouring rows of 16 bytes are exchanged so
  // that neither those who write nor those who read meet in a bank.
  CONVT_HOST_DEVICE static int position_of(int lane) {
    const int at = lane / kPieces;
    return kBytes == 2 ? at : at % 4 * 2 + at / 4;
  }
  CONVT_HOST_DEVICE static int swizzle(int at) { return kBytes == 2 ? at / 4 % 2 : at / 2 % 2 * 2; }
  CONVT_HOST_DEVICE static int written_to(int lane) {
    if (kBytes == 2) {   // a row of a matrix: 8 channels of one position
      return (lane / 16 * 8 + lane % 8) * kPitch + (lane / 8 % 2 ^ swizzle(lane % 8)) * 16;
    }
    return lane % 4 * kPitch + (lane / 16 ^ swizzle(lane % 4)) * 16 + lane / 4 % 4 * 4;
  }

  struct Place {
    std::int32_t slot, channel;   // of the block
    std::int32_t channels;        // that exist from there on
  };
  CONVT_HOST_DEVICE static Place place_of(const GemmParams& params, const Tile& tile, const PhaseBlock& block,
                                          std::int32_t row) {
    const std::int32_t slot = params.order.by_channels.quotient(row);
    const std::int32_t channel = params.order.by_channels.remainder(row, slot);
    const std::int32_t left = params.out_channels - tile.channel_block * params.block_channels;
    const std::int32_t channels = left < params.block_channels ? left : params.block_channels;
    return {slot, channel, slot < block.slots && channel < channels ? channels - channel : 0};
  }

  template <class Warp>
  CONVT_HOST_DEVICE static Piece piece_of(Warp& warp, const GemmParams& params, const Tile& tile,
                                          const PhaseBlock& block, std::int32_t row, std::int32_t odd) {
    const Place place = place_of(params, tile, block, row);
    Piece piece{nullptr, 0, kExitOffset - odd, 0, kExitOffset, 16};
    if (place.channels == 0) return piece;
    const std::int32_t phase =
        warp.template global<std::int32_t>(params.tables + params.table.phases + (block.first_phase + place.slot) * 4);
    std::int32_t low[kTileAxes] = {0}, high[kTileAxes] = {tile.count[0]}, rest = phase;
    std::int64_t origin =
        tile.q[0] * params.output_strides[0] + (std::int64_t(tile.conv_group) * params.out_channels +
                                                tile.channel_block * params.block_channels + place.channel) *
                                                   params.output_strides[1];
#pragma unroll
    for (int axis = kTileAxes - 1; axis > 0; --axis) {
      const TileAxis& along = params.axes[axis];
      const std::int32_t outer = along.by_stride.quotient(rest);
      const std::int64_t begin = along.stride * tile.q[axis] + along.by_stride.remainder(rest, outer) - along.origin;
      rest = outer;
      origin += begin * params.output_strides[1 + axis];
      const ExitDigits digits = existing_digits(along, begin, tile.count[axis]);
      low[axis] = digits.low;
      high[axis] = digits.high;
    }
    piece.target =
        static_cast<char*>(params.output) + (origin + odd * params.axes[3].stride * params.output_strides[4]) * kBytes;
    piece.low_hw = std::uint32_t(low[2] * 65536 + low[3] - odd);
    piece.high_hw += std::uint32_t(high[2] * 65536 + high[3]);
    piece.low_nd = std::uint32_t(low[1]);
    piece.high_nd += std::uint32_t(high[0] * 65536 + high[1]);
    piece.bytes = (place.channels < kVector ? place.channels : kVector) * kBytes;
    return piece;
  }

  CONVT_HOST_DEVICE static bool inside(const Piece& piece, const ExitPair& exit) {
    return (tops_within(std::uint32_t(exit.hw), piece.low_hw, piece.high_hw) &
            tops_within(std::uint32_t(exit.nd), piece.low_nd, piece.high_nd)) == kExitTops;
  }

  template <class Warp>
  CONVT_HOST_DEVICE static void store_words(Warp& warp, char* target, const Vector16& value, std::int32_t bytes,
                                            std::int32_t aligned) {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      if (aligned >= 4 && word * 4 + 4 <= bytes) {
        warp.template store_global<std::uint32_t>(target + word * 4, value.word[word]);
      } else if (kBytes == 2) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (word * 4 + half * 2 < bytes) {
            warp.template store_global<std::uint16_t>(target + word * 4 + half * 2,
                                                      std::uint16_t(value.word[word] >> half * 16));
          }
        }
      }
    }
  }
};

}  // namespace convt
