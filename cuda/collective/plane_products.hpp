#pragma once

#include "collective/gemm_params.hpp"

namespace convt {

// A shift's products: a warpgroup's 64 rows of a filter slab by its 256 positions of a patch, over the planes of a chunk that have
// channels.
template <TileConfig kConfig, Operand kOperand, WayIn kWayIn>
struct PlaneProducts {
  static constexpr int kPixel = kConfig.pixel_bytes(kWayIn);

  // `filter`: the slab; `first`: the tile's first pixel at this shift; `plane_bytes`: of a patch that was gathered. Products stand in no
  // function of their own: calls would serialise them.
  template <int kPlanes, class Warp, class Sum>
  CONVT_HOST_DEVICE CONVT_ALWAYS_INLINE static void run(Warp& warp, Sum& sum, const GemmParams& params,
                                                        std::int32_t filter, std::int32_t first,
                                                        std::int32_t plane_bytes) {
    const std::int32_t rows = filter + warp.index() % kConfig.warps_m / 4 * kGroupRows * 16;
    const std::int32_t* const runs = params.runs + warp.index() / kConfig.warps_m * 2;
    const std::int32_t left = first + runs[0] * kPixel, right = first + runs[1] * kPixel;
    warp.begin_products(sum);
#pragma unroll
    for (int plane = 0; plane < kPlanes; plane += kMmaPlanes) {
      const std::int32_t a = rows + plane * kConfig.rows * 16;
      if constexpr (kWayIn == WayIn::boxes) {
        warp.template multiply_boxes<kOperand, 0, kPixel>(sum, a, kConfig.rows * 16, left + plane * 16);
        warp.template multiply_boxes<kOperand, 16, kPixel>(sum, a, kConfig.rows * 16, right + plane * 16);
      } else {
        const std::int32_t on = plane * plane_bytes;
        warp.template multiply_group<kOperand, 0>(sum, a, kConfig.rows * 16, left + on, plane_bytes);
        warp.template multiply_group<kOperand, 16>(sum, a, kConfig.rows * 16, right + on, plane_bytes);
      }
    }
    warp.commit_products(sum);
  }
};

}  // namespace convt
