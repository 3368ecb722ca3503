#pragma once

#include "arch/lanes.hpp"
#include "arch/tf32.hpp"
#include "collective/outer_params.hpp"

namespace convt {

// The operand in registers: 16 pairs of a tap and a channel per warp, by the pixels of an MMA step. Where a box's patch lies as in
// memory, any tap reads it at its own distance, word by word or transposed by the load: nothing is copied for it.
template <OuterConfig kConfig, Operand kOperand, Innermost kInner>
struct OuterFragments {
  static constexpr bool kWide = is_float32(kOperand);
  static constexpr bool kTransposes = !kWide && kInner == Innermost::channels;   // ldmatrix
  static constexpr int kDepth = kWide ? 8 : 16;                  // pixels of a step
  static constexpr int kSteps = kConfig.steps;
  static constexpr int kTiles = kConfig.row_tiles;
  static constexpr int kColumns = kConfig.channels / kOctet;
  static constexpr int kPlaces = kTransposes ? 1 : kWide ? 2 : 4;   // pixels of a step that a lane reads
  static constexpr int kParts = kTransposes ? 1 : 2;             // octets of a tile that a lane reads

  template <int kLanes>
  struct State {
    Lanes<float, kLanes> sum[kTiles][kColumns][4];
    Lanes<std::uint32_t, kLanes> a[kFragments][4];
    Lanes<std::int32_t, kLanes> part[kTiles][kParts];  // byte offset of this lane's channel of a tap in a patch
    Lanes<std::int32_t, kLanes> place[kPlaces];  // of its pixels, the stage's offset included
  };

  // The octet of pairs of a warp's tile: half 0 has its first 8 rows.
  struct Pair {
    std::int32_t tap, octet;
    bool exists;
  };
  CONVT_HOST_DEVICE static Pair pair_of(const OuterParams& params, std::int32_t warp, int tile, int half,
                                        std::int32_t taps) {
    const std::int32_t index = (warp / 4 * kTiles + tile) * (kGroupRows / kOctet) + warp % 4 * 2 + half;
    const bool exists = index < taps * params.block_octets;
    const std::int32_t tap = exists ? params.by_octets.quotient(index) : 0;
    return {tap, exists ? params.by_octets.remainder(index, tap) : 0, exists};
  }

  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void prepare(Warp& warp, State<kLanes>& state, const OuterParams& params,
                                        const OuterBlock& block, const char* tables) {
    const char* const taps = tables + params.table.taps + block.first_tap * sizeof(OuterTap);
    warp.lanes([&](int lane) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int at = 0; at < kParts; ++at) {
          const Pair pair = pair_of(params, warp.index(), tile, kTransposes ? lane / 8 % 2 : at, block.taps);
          const std::int32_t pixel =
              warp.template reread<std::int32_t>(taps + pair.tap * sizeof(OuterTap) + sizeof(std::int64_t));
          state.part[tile][at][lane] = pixel * params.pixel_bytes + pair.octet * params.octet_bytes +
                                       (kTransposes ? 0 : lane / 4 * params.channel_bytes);
        }
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
#pragma unroll
          for (int k = 0; k < 4; ++k) state.sum[tile][j][k][lane] = 0;
        }
      }
    });
  }

  // Turns to a step of the box whose patch is at byte offset `patch`.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void enter(Warp& warp, State<kLanes>& state, const OuterParams& params, std::int32_t patch,
                                      int step) {
    warp.lanes([&](int lane) {
#pragma unroll
      for (int at = 0; at < kPlaces; ++at) {
        std::int32_t position = step * kDepth;
        if constexpr (kTransposes) {
          position += lane / 16 * 8 + lane % 8;
        } else if constexpr (kWide) {
          position += at * 4 + lane % 4;
        } else {
          position += at / 2 * 8 + lane % 4 * 2 + at % 2;
        }
        state.place[at][lane] = patch + warp.template load<std::int32_t>(params.shared.positions + position * 4);
      }
    });
  }

  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void fetch(Warp& warp, State<kLanes>& state, int tile, int buffer) {
    if constexpr (kTransposes) {
      Lanes<std::uint32_t, kLanes> row;
      warp.lanes([&](int lane) { row[lane] = state.place[0][lane] + state.part[tile][0][lane]; });
      warp.load_transposed(row, 0, state.a[buffer]);
    } else {
      warp.lanes([&](int lane) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const std::int32_t part = state.part[tile][k % 2][lane];
          if constexpr (kWide) {
            state.a[buffer][k][lane] =
                nearest_tf32_operand(warp.template load<std::uint32_t>(state.place[k / 2][lane] + part));
          } else {
            const std::uint32_t low = warp.load_half(state.place[k / 2 * 2][lane] + part);
            const std::uint32_t high = warp.load_half(state.place[k / 2 * 2 + 1][lane] + part);
            state.a[buffer][k][lane] = low | high << 16;
          }
        }
      });
    }
  }

  // By the input's part of the box, at byte offset `input`.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void multiply(Warp& warp, State<kLanes>& state, std::int32_t input, int step, int tile,
                                         int buffer) {
    constexpr bool along = OuterConfig::along_reduction(kOperand, kInner);
    constexpr std::int32_t block =
        kConfig.input_lines(kOperand, kInner) * 128;   // of lines: a pixel's channels take two
    constexpr int steps = 128 / (kDepth * operand_bytes(kOperand));               // of a line
    warp.begin_products(state.sum[tile]);
    const std::int32_t at = along ? step / steps * block + step % steps * (128 / steps) : step * kDepth * 128;
    warp.template multiply_lines<kOperand, !along>(state.sum[tile], state.a[buffer], input + at, block);
    warp.commit_products(state.sum[tile]);
  }
};

}  // namespace convt
