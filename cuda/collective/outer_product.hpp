#pragma once

#include "arch/lanes.hpp"
#include "arch/tf32.hpp"
#include "collective/weight_params.hpp"

namespace convt {

// sum[input channel][tap, output channel] += input[pixel] * grad_output[pixel moved by the tap], over the pixels of a box. Both
// operands lie in planes of 16-byte channel vectors, so the reduction runs across the vectors: 16-bit matrices are transposed by
// the load, float32 is gathered word by word.
template <WeightConfig kConfig, Operand kOperand>
struct OuterProduct {
  static constexpr bool kWide = is_float32(kOperand);
  static constexpr int kDepth = kWide ? 8 : 16;                 // pixels of an mma.sync
  static constexpr int kSteps = kConfig.pixels / kDepth;
  static constexpr int kRowTiles = kConfig.warp_rows() / kMmaRows;
  static constexpr int kColumnTiles = kConfig.warp_columns() / kOctet;
  static constexpr int kPairs = (kColumnTiles + 1) / 2;
  static constexpr int kOctetPlanes = kOctet / operand_vector(kOperand);
  static constexpr int kPlaneBytes = kConfig.input_pitch() * 16;   // of the input's tile
  static constexpr int kColumns = kWide ? kColumnTiles : kPairs;   // addresses of a lane
  static constexpr int kBuffers = kConfig.buffers_of(kOperand);
  static_assert(kConfig.warp_rows() % kMmaRows == 0, "a warp's rows are whole MMA tiles");
  static_assert(kSteps % 2 == 0, "a box is an even number of MMA steps");

  template <int kLanes>
  struct State {
    Lanes<float, kLanes> sum[kRowTiles][kColumnTiles][4];
    Lanes<std::uint32_t, kLanes> row;  // byte offset of this lane's part of a fragment, in the input's tile
    Lanes<std::int32_t, kLanes> column[kColumns];  // the same in the patch, position aside
    Lanes<std::uint32_t, kLanes> a[kBuffers][kRowTiles][4];
    Lanes<std::uint32_t, kLanes> b[kBuffers][kPairs][4];
  };

  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void place(Warp& warp, State<kLanes>& state, const WeightParams& params,
                                      const ShiftGroup& group, const char* tables) {
    const std::int32_t first_row = warp.index() % kConfig.warps_m * kConfig.warp_rows();
    const std::int32_t first_tile = warp.index() / kConfig.warps_m * kColumnTiles;
    const std::int32_t plane_bytes = patch_pitch(params.pixels) * 16;
    const char* const taps = tables + params.table.taps + group.first_shift * sizeof(WeightTap);
    warp.lanes([&](int lane) {
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
        for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
          for (int k = 0; k < 4; ++k) state.sum[i][j][k][lane] = 0;
        }
      }
      const std::int32_t first_plane = first_row / operand_vector(kOperand);
      if constexpr (kWide) {
        state.row[lane] = (first_plane + lane / 16) * kPlaneBytes + lane % 4 * 16 + lane / 4 % 4 * 4;
      } else {
        // Matrices: channels 0-7 and 8-15 of pixels 0-7, then of pixels 8-15.
        state.row[lane] = (first_plane + lane / 8 % 2) * kPlaneBytes + (lane / 16 * 8 + lane % 8) * 16;
      }
#pragma unroll
      for (int at = 0; at < kColumns; ++at) {
        // Tiles that the block has no columns for repeat its first.
        std::int32_t tile = first_tile + (kWide ? at : 2 * at + lane / 16);
        tile = tile < group.shifts * params.block_octets ? tile : 0;
        const std::int32_t tap = params.by_octets.quotient(tile), octet = params.by_octets.remainder(tile, tap);
        const std::int32_t pixel =
            warp.template reread<std::int32_t>(taps + tap * sizeof(WeightTap) + sizeof(std::int64_t));
        state.column[at][lane] = pixel * 16 + octet * kOctetPlanes * plane_bytes;
        if constexpr (kWide) state.column[at][lane] += lane / 16 * plane_bytes + lane / 4 % 4 * 4;
      }
    });
  }

  // Fetches the fragments of a step from the stages at these byte offsets.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void fetch(Warp& warp, State<kLanes>& state, std::int32_t input, std::int32_t patch,
                                      std::int32_t positions, int step, int buffer) {
    if constexpr (kWide) {
      warp.lanes([&](int lane) {
        const std::int32_t from = positions + (step * kDepth + lane % 4) * 4;
        const std::int32_t near = patch + warp.template load<std::int32_t>(from);
        const std::int32_t far = patch + warp.template load<std::int32_t>(from + 16);
        const std::int32_t row = input + std::int32_t(state.row[lane]) + step * kDepth * 16;
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            state.a[buffer][i][k][lane] =
                warp.template load<std::uint32_t>(row + (i * 4 + k % 2 * 2) * kPlaneBytes + k / 2 * 64);
          }
        }
#pragma unroll
        for (int j = 0; j < kColumnTiles; ++j) {
          state.b[buffer][j / 2][j % 2 * 2][lane] = warp.template load<std::uint32_t>(near + state.column[j][lane]);
          state.b[buffer][j / 2][j % 2 * 2 + 1][lane] = warp.template load<std::uint32_t>(far + state.column[j][lane]);
        }
      });
    } else {
      Lanes<std::uint32_t, kLanes> pixels[kPairs];
      warp.lanes([&](int lane) {
        const std::int32_t pixel = step * kDepth + lane / 8 % 2 * 8 + lane % 8;
        const std::int32_t position = patch + warp.template load<std::int32_t>(positions + pixel * 4);
#pragma unroll
        for (int pair = 0; pair < kPairs; ++pair) pixels[pair][lane] = position + state.column[pair][lane];
      });
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        warp.load_transposed(state.row, input + step * kDepth * 16 + i * 2 * kPlaneBytes, state.a[buffer][i]);
      }
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) warp.load_transposed(pixels[pair], 0, state.b[buffer][pair]);
    }
  }

  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void multiply(Warp& warp, State<kLanes>& state, int buffer) {
    if constexpr (kOperand == Operand::ieee) {
      Lanes<std::uint32_t, kLanes> row_high[kRowTiles][4], row_low[kRowTiles][4];
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) split(warp, state.a[buffer][i], row_high[i], row_low[i]);
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        Lanes<std::uint32_t, kLanes> high[2], low[2];
        split(warp, state.b[buffer][j / 2] + j % 2 * 2, high, low);
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          // Tensor cores truncate their sums: each step's is formed apart, small terms first, and added in float32.
          Lanes<float, kLanes> partial[4];
          warp.template multiply<Operand::tf32, true>(partial, row_low[i], high);
          warp.template multiply<Operand::tf32, false>(partial, row_high[i], low);
          warp.template multiply<Operand::tf32, false>(partial, row_high[i], high);
          warp.lanes([&](int lane) {
#pragma unroll
            for (int k = 0; k < 4; ++k) state.sum[i][j][k][lane] += partial[k][lane];
          });
        }
      }
    } else {
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          warp.template multiply<kOperand, false>(state.sum[i][j], state.a[buffer][i],
                                                  state.b[buffer][j / 2] + j % 2 * 2);
        }
      }
    }
  }

 private:
  template <class Warp, int kLanes, int kWords>
  CONVT_HOST_DEVICE static void split(Warp& warp, const Lanes<std::uint32_t, kLanes>* from,
                                      Lanes<std::uint32_t, kLanes> (&high)[kWords],
                                      Lanes<std::uint32_t, kLanes> (&low)[kWords]) {
    warp.lanes([&](int lane) {
#pragma unroll
      for (int k = 0; k < kWords; ++k) {
        const Tf32Pair pair = split_to_tf32(from[k][lane]);
        high[k][lane] = pair.high;
        low[k][lane] = pair.low;
      }
    });
  }
};

}  // namespace convt
