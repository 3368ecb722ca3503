#pragma once

#include <cstring>

#include "arch/convert.hpp"
#include "geometry/fast_divisor.hpp"

namespace convt {

// How a tensor is summed over everything but its channels. Neighbours are fetched together, in pieces: rows of pixels of a channel, or
// rows of channels of a pixel. A thread block has a share of the pieces of a channel, or of the rows of so many channels.
struct ChannelSumShape {
  std::int64_t
      strides[2];  // elements: of rows of pixels those of images and channels, of rows of channels the first is theirs
  std::int64_t row;  // elements of a row
  std::int32_t rows;  // images, or pixels of all images
  std::int32_t channels;
  std::int32_t channels_inner;
  std::int32_t shares;
  std::int32_t piece;  // bytes: every row has whole, aligned ones
  std::int32_t row_pieces;
  std::int32_t count, share;  // what is shared: pieces of a channel, or rows; and how much a thread block has
  std::int32_t across;  // thread blocks of a share
  FastDivisor by_row_pieces, by_across;
};

// The gradient of a bias. The order of additions is the shape's alone. Shares are rows of channels, which the same kernel sums.
template <class S, class Result>
struct ChannelSum {
  static constexpr int kThreads = 256, kMaxThreads = kThreads;
  static constexpr int kShared = kThreads * 16 / int(sizeof(S));
  static constexpr int kFolded = 32;  // sums that one thread adds up in the end
  using T = Accumulator<S>;
  struct Params {
    ChannelSumShape shape;
    const S* source;
    T* partial;  // [share][channel], or null: of one share
    Result* result;
  };

  // A thread's own sum of its channel, or sums of its channels.
  static CONVT_HOST_DEVICE void gather(const Params& params, std::int32_t block, int thread, T* shared) {
    switch (params.shape.piece) {
      case 16:
        return gather_in<Vector16>(params, block, thread, shared);
      case 8:
        return gather_in<std::uint64_t>(params, block, thread, shared);
      case 4:
        if constexpr (sizeof(S) <= 4) return gather_in<std::uint32_t>(params, block, thread, shared);
        return;
      default:
        if constexpr (sizeof(S) <= 2) return gather_in<std::uint16_t>(params, block, thread, shared);
    }
  }

  static CONVT_HOST_DEVICE void fold(const Params& params, int thread, T* shared) {
    if (params.shape.channels_inner || thread >= kFolded) return;
    T sum = 0;
#pragma unroll
    for (int at = 0; at < kThreads; at += kFolded) sum += shared[at + thread];
    shared[thread] = sum;
  }

  static CONVT_HOST_DEVICE void store(const Params& params, std::int32_t block, int thread, const T* shared) {
    const ChannelSumShape& shape = params.shape;
    const std::int32_t share = shape.by_across.quotient(block), own = shape.by_across.remainder(block, share);
    if (!shape.channels_inner) {
      if (thread == 0) store_one(params, share, own, sum_of(shared, kFolded, 1));
      return;
    }
    const Columns columns = columns_of(shape, own);
    const std::int32_t elements = shape.piece / std::int32_t(sizeof(S)), channels = columns.count * elements;
    for (std::int32_t at = thread; at < channels; at += kThreads) {
      store_one(params, share, own * kThreads * elements + at, sum_of(shared + at, columns.rows, channels));
    }
  }

#ifdef __CUDACC__
  __device__ void operator()(const Params& params) const {
    __shared__ T shared[kShared];
    gather(params, blockIdx.x, threadIdx.x, shared);
    __syncthreads();
    fold(params, threadIdx.x, shared);
    __syncthreads();
    store(params, blockIdx.x, threadIdx.x, shared);
  }
#endif

 private:
  // Pieces of a row that a thread block has side by side, and how many rows at a time.
  struct Columns {
    std::int32_t count, rows;
  };
  static CONVT_HOST_DEVICE Columns columns_of(const ChannelSumShape& shape, std::int32_t own) {
    const std::int32_t left = shape.row_pieces - own * kThreads, count = left < kThreads ? left : kThreads;
    return {count, kThreads / count};
  }

  template <class Piece>
  static CONVT_HOST_DEVICE void gather_in(const Params& params, std::int32_t block, int thread, T* shared) {
    constexpr int kElements = int(sizeof(Piece) / sizeof(S));
    const ChannelSumShape& shape = params.shape;
    const std::int32_t share = shape.by_across.quotient(block), own = shape.by_across.remainder(block, share);
    const std::int32_t begin = share * shape.share, left = shape.count - begin;
    const std::int32_t end = begin + (left < shape.share ? left : shape.share);
    T sum[kElements] = {};
    if (shape.channels_inner) {
      const Columns columns = columns_of(shape, own);
      const std::int32_t row = thread / columns.count, column = thread - row * columns.count;
      if (row >= columns.rows) return;
      const S* const first = params.source + std::int64_t(own * kThreads + column) * kElements;
      add<Piece>(begin + row, end, columns.rows, sum, [&](std::int32_t at) { return first + at * shape.strides[0]; });
#pragma unroll
      for (int at = 0; at < kElements; ++at) shared[thread * kElements + at] = sum[at];
      return;
    }
    const S* const first = params.source + own * shape.strides[1];
    add<Piece>(begin + thread, end, kThreads, sum, [&](std::int32_t at) {
      const std::int32_t image = shape.by_row_pieces.quotient(at);
      return first + image * shape.strides[0] + std::int64_t(shape.by_row_pieces.remainder(at, image)) * kElements;
    });
    shared[thread] = sum_of(sum, kElements, 1);
  }

  // Several pieces on their way at a time.
  template <class Piece, int kElements, class Place>
  static CONVT_HOST_DEVICE void add(std::int32_t begin, std::int32_t end, std::int32_t step, T (&sum)[kElements],
                                    Place place) {
    constexpr int kBatch = sizeof(Piece) >= 8 ? 4 : 8;
#pragma unroll 1
    for (std::int64_t first = begin; first < end; first += std::int64_t(step) * kBatch) {
      Piece piece[kBatch];
#pragma unroll
      for (int at = 0; at < kBatch; ++at) {
        const std::int64_t which = first + std::int64_t(at) * step;
        piece[at] = Piece{};
        if (which < end) piece[at] = *reinterpret_cast<const Piece*>(place(std::int32_t(which)));
      }
#pragma unroll
      for (int at = 0; at < kBatch; ++at) {
        S element[kElements];
        std::memcpy(element, &piece[at], sizeof(Piece));
#pragma unroll
        for (int i = 0; i < kElements; ++i) sum[i] += widen(element[i]);
      }
    }
  }

  // Four sums side by side: of a like size, and none waits for the one before.
  static CONVT_HOST_DEVICE T sum_of(const T* from, std::int32_t count, std::int32_t pitch) {
    T sum[4] = {};
    for (std::int32_t at = 0; at < count; at += 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (at + i < count) sum[i] += from[(at + i) * pitch];
      }
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  static CONVT_HOST_DEVICE void store_one(const Params& params, std::int32_t share, std::int32_t channel, T sum) {
    if (params.partial != nullptr) {
      params.partial[std::int64_t(share) * params.shape.channels + channel] = sum;
    } else {
      params.result[channel] = narrow_to<Result>(sum);
    }
  }
};

}  // namespace convt
