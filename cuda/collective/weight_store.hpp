#pragma once

#include "arch/half.hpp"
#include "collective/outer_product.hpp"

namespace convt {

// Sums of a thread block to memory: partial sums in float32, or the gradient itself.
template <WeightConfig kConfig, Operand kOperand>
struct WeightStore {
  using Products = OuterProduct<kConfig, kOperand>;

  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void write(Warp& warp, const typename Products::template State<kLanes>& state,
                                      const WeightParams& params, const WeightTile& tile, const ShiftGroup& group,
                                      const char* tables) {
    const std::int32_t first_row = warp.index() % kConfig.warps_m * kConfig.warp_rows();
    const std::int32_t first_tile = warp.index() / kConfig.warps_m * Products::kColumnTiles;
    const std::int32_t rows = params.in_channels - tile.row_block * kConfig.rows;
    const std::int32_t channels = params.out_channels - tile.channel_block * params.block_octets * kOctet;
    const std::int32_t tiles = group.shifts * params.block_octets;
    const char* const taps = tables + params.table.taps + group.first_shift * sizeof(WeightTap);
    const std::int64_t origin = tile.split * params.split_stride + tile.conv_group * params.group_stride +
                                std::int64_t(tile.row_block) * kConfig.rows * params.row_stride +
                                std::int64_t(tile.channel_block) * params.block_octets * kOctet * params.column_stride;
    const int bytes = params.partial ? 4 : operand_bytes(kOperand);
    char* const base = static_cast<char*>(params.result) + origin * bytes;
    warp.lanes([&](int lane) {
#pragma unroll
      for (int j = 0; j < Products::kColumnTiles; ++j) {
        if (first_tile + j >= tiles) continue;
        const std::int32_t tap = params.by_octets.quotient(first_tile + j);
        const std::int32_t octet = params.by_octets.remainder(first_tile + j, tap);
        const std::int64_t at = warp.template reread<std::int64_t>(taps + tap * sizeof(WeightTap));
        const std::int32_t channel = octet * kOctet + lane % 4 * 2;
        char* const column = base + (at + channel * params.column_stride) * bytes;
#pragma unroll
        for (int i = 0; i < 2 * Products::kRowTiles; ++i) {
          const std::int32_t row = first_row + i * 8 + lane / 4;
          if (row >= rows) continue;
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            if (channel + k >= channels) continue;
            char* const target = column + (row * params.row_stride + k * params.column_stride) * bytes;
            const float sum = state.sum[i / 2][j][i % 2 * 2 + k][lane];
            if (is_float32(kOperand) || params.partial) {
              warp.template store_global<float>(target, sum);
            } else {
              warp.template store_global<std::uint16_t>(target, narrow<kOperand>(sum));
            }
          }
        }
      }
    });
  }
};

}  // namespace convt
