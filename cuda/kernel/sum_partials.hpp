#pragma once

#include "arch/convert.hpp"
#include "geometry/problem.hpp"

namespace convt {

// The second stage of a weight gradient whose pixels were split among thread blocks: their sums are added in an order that
// is the splits' own, so that the result does not depend on who came first. Partial sums lie in [split][tap][in_channel][out_channel].
struct SumShape {
  std::int64_t taps, in_channels, out_channels;   // out_channels: of a group
  std::int64_t splits;
  std::int64_t filter[kAxes];                     // taps along D, H, W
  std::int64_t strides[2 + kAxes];                // of the result: in_channel, out_channel, D, H, W; elements
};

template <class S>
struct SumPartials {
  static constexpr int kThreads = 256;
  static constexpr int kMaxThreads = kThreads;
  using T = Accumulator<S>;
  struct Params {
    SumShape shape;
    const T* partial;
    S* result;
  };

  static CONVT_HOST_DEVICE std::int64_t elements(const SumShape& shape) {
    return shape.taps * shape.in_channels * shape.out_channels;
  }

  static CONVT_HOST_DEVICE void element(const Params& params, std::int64_t index) {
    const SumShape& shape = params.shape;
    const std::int64_t pitch = elements(shape);
    const T* from = params.partial + index;
    // Eight sums, on their way together and of a like size: one long chain of additions would round more.
    T part[8] = {};
    std::int64_t split = 0;
    for (; split + 8 <= shape.splits; split += 8) {
#pragma unroll
      for (int k = 0; k < 8; ++k) part[k] += from[(split + k) * pitch];
    }
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      if (split + k < shape.splits) part[k] += from[(split + k) * pitch];
    }
    const T sum = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));

    const auto next = [&index](std::int64_t extent) {
      const std::int64_t quotient = index / extent, digit = index - quotient * extent;
      index = quotient;
      return digit;
    };
    std::int64_t at = next(shape.out_channels) * shape.strides[1];
    at += next(shape.in_channels) * shape.strides[0];
    for (int axis = kAxes - 1; axis >= 0; --axis) at += next(shape.filter[axis]) * shape.strides[2 + axis];
    params.result[at] = narrow_to<S>(sum);
  }

#ifdef __CUDACC__
  __device__ void operator()(const Params& params) const {
    const std::int64_t threads = std::int64_t(gridDim.x) * blockDim.x, count = elements(params.shape);
    for (std::int64_t index = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < count; index += threads) {
      element(params, index);
    }
  }
#endif
};

}  // namespace convt
