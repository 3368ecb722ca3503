#pragma once

#include "arch/convert.hpp"
#include "geometry/fast_divisor.hpp"
#include "geometry/problem.hpp"

namespace convt {

// The second stage of a weight gradient whose pixels were split among thread blocks: their sums are added in an order that
// is the splits' own, so that the result does not depend on who came first. Partial sums lie in [split][tap][pair of an in_channel and
// an out_channel]. A thread block takes the same taps of some pairs through shared memory: both tensors are met as they lie.
struct SumShape {
  std::int64_t taps, pairs;         // pairs: out_channels of a group are innermost
  std::int64_t splits;
  std::int64_t out_channels;
  std::int64_t strides[2 + kAxes];  // of the result: in_channel, out_channel, D, H, W; elements
  std::int32_t tile_taps;
  std::int32_t pairs_log2;          // of a tile
  std::int32_t taps_first;  // 1: taps of a pair lie side by side in the result, or nearly; 0: pairs of a tap do
  FastDivisor by_channels, by_tile_taps, by_rows, by_columns;  // rows and columns: of the filter
};

template <class S>
struct SumPartials {
  static constexpr int kThreads = 256;
  static constexpr int kMaxThreads = kThreads;
  static constexpr int kTile = 1024;  // sums of a tile, at most
  static constexpr int kShared = kTile + kTile / 2;  // with a place between pairs
  using T = Accumulator<S>;
  struct Params {
    SumShape shape;
    const T* partial;
    S* result;
  };

  static CONVT_HOST_DEVICE std::int64_t tiles(const SumShape& shape) { return pair_blocks(shape) * tap_blocks(shape); }

  // The sums of a tile, pair by pair side by side.
  static CONVT_HOST_DEVICE void gather(const Params& params, std::int64_t tile, int thread, T* shared) {
    if (params.shape.pairs % kVector == 0) {
      gather_vectors<kVector>(params, tile, thread, shared);
    } else {
      gather_vectors<1>(params, tile, thread, shared);
    }
  }

  // To where they lie in the result, what is there side by side first.
  static CONVT_HOST_DEVICE void scatter(const Params& params, std::int64_t tile, int thread, const T* shared) {
    const SumShape& shape = params.shape;
    const Tile own = tile_at(shape, tile);
    const std::int64_t first_in = own.first_pair / shape.out_channels;
    const auto first_out = std::int32_t(own.first_pair - first_in * shape.out_channels);
    for (std::int32_t at = thread; at < shape.tile_taps << shape.pairs_log2; at += kThreads) {
      std::int32_t pair, tap;
      if (shape.taps_first) {
        pair = shape.by_tile_taps.quotient(at);
        tap = shape.by_tile_taps.remainder(at, pair);
      } else {
        tap = at >> shape.pairs_log2;
        pair = at & ((1 << shape.pairs_log2) - 1);
      }
      if (pair >= own.pairs || tap >= own.taps) continue;
      const std::int32_t in = shape.by_channels.quotient(first_out + pair),
                         out = shape.by_channels.remainder(first_out + pair, in);
      const auto flat = std::int32_t(own.first_tap + tap), rows = shape.by_columns.quotient(flat),
                 column = shape.by_columns.remainder(flat, rows), slice = shape.by_rows.quotient(rows),
                 row = shape.by_rows.remainder(rows, slice);
      params.result[(first_in + in) * shape.strides[0] + out * shape.strides[1] + slice * shape.strides[2] +
                    row * shape.strides[3] + column * shape.strides[4]] =
          narrow_to<S>(shared[pair * (shape.tile_taps | 1) + tap]);
    }
  }

#ifdef __CUDACC__
  __device__ void operator()(const Params& params) const {
    __shared__ T shared[kShared];
    for (std::int64_t tile = blockIdx.x; tile < tiles(params.shape); tile += gridDim.x) {
      gather(params, tile, threadIdx.x, shared);
      __syncthreads();
      scatter(params, tile, threadIdx.x, shared);
      __syncthreads();
    }
  }
#endif

 private:
  static constexpr int kVector = 16 / int(sizeof(T));
  template <int kPairs>
  struct alignas(kPairs * sizeof(T)) Vector {
    T sum[kPairs];
  };

  template <int kPairs>
  static CONVT_HOST_DEVICE void gather_vectors(const Params& params, std::int64_t tile, int thread, T* shared) {
    const SumShape& shape = params.shape;
    const Tile own = tile_at(shape, tile);
    const std::int64_t pitch = shape.taps * shape.pairs / kPairs;
    for (std::int32_t at = thread * kPairs; at < own.taps << shape.pairs_log2; at += kThreads * kPairs) {
      const std::int32_t tap = at >> shape.pairs_log2, pair = at & ((1 << shape.pairs_log2) - 1);
      if (pair >= own.pairs) continue;
      const auto* from = reinterpret_cast<const Vector<kPairs>*>(params.partial + (own.first_tap + tap) * shape.pairs +
                                                                 own.first_pair + pair);
      // Eight sums, on their way together and of a like size: one long chain of additions would round more.
      T part[8][kPairs] = {};
      const auto add = [&](int k, std::int64_t split) {
        const Vector<kPairs> loaded = from[split * pitch];
#pragma unroll
        for (int i = 0; i < kPairs; ++i) part[k][i] += loaded.sum[i];
      };
      std::int64_t split = 0;
      for (; split + 8 <= shape.splits; split += 8) {
#pragma unroll
        for (int k = 0; k < 8; ++k) add(k, split + k);
      }
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        if (split + k < shape.splits) add(k, split + k);
      }
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        shared[(pair + i) * (shape.tile_taps | 1) + tap] = ((part[0][i] + part[1][i]) + (part[2][i] + part[3][i])) +
                                                           ((part[4][i] + part[5][i]) + (part[6][i] + part[7][i]));
      }
    }
  }

  struct Tile {
    std::int64_t first_tap, first_pair;
    std::int32_t taps, pairs;
  };
  static CONVT_HOST_DEVICE std::int64_t pair_blocks(const SumShape& shape) {
    return (shape.pairs + (1 << shape.pairs_log2) - 1) >> shape.pairs_log2;
  }
  static CONVT_HOST_DEVICE std::int64_t tap_blocks(const SumShape& shape) {
    return (shape.taps + shape.tile_taps - 1) / shape.tile_taps;
  }
  static CONVT_HOST_DEVICE Tile tile_at(const SumShape& shape, std::int64_t tile) {
    const std::int64_t blocks = pair_blocks(shape), tap_block = tile / blocks;
    const std::int64_t tap = tap_block * shape.tile_taps, pair = (tile - tap_block * blocks) << shape.pairs_log2;
    const auto least = [](std::int64_t left, std::int32_t most) { return left < most ? std::int32_t(left) : most; };
    return {tap, pair, least(shape.taps - tap, shape.tile_taps), least(shape.pairs - pair, 1 << shape.pairs_log2)};
  }
};

}  // namespace convt
