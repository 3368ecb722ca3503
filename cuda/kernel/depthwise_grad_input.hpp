#pragma once

#include "kernel/depthwise_gradient.hpp"

// The gradient of a depthwise problem's input: a strided convolution of grad_output. Its box lies in shared memory, a
// thread sums several input pixels in registers.
namespace convt {

template <class S, int kPitch>
struct DepthwiseGradInput {
  using T = Accumulator<S>;
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = sizeof(S) == 8 ? 2 : kPitch ? 4 : 3;
  static constexpr int R = kDepthwisePixels;
  struct Params {
    DepthwiseGradientShape shape;
    const void* filter;
    const void* output;                  // grad_output
    void* input;                         // the result
  };

  static CONVT_HOST_DEVICE DepthwiseTile tile_of(const DepthwiseGradientShape& shape, std::int32_t index) {
    DepthwiseTile tile;
    const std::int32_t rest = depthwise_tile_pixels(shape, index, tile);
    tile.image = shape.by_channel_blocks.quotient(rest);
    tile.group = shape.by_channel_blocks.remainder(rest, tile.image) * shape.block_groups;
    return tile;
  }

  // What does not depend on the loads: lines of the box, columns of the taps, filter.
  static CONVT_HOST_DEVICE void start(const Params& params, std::int32_t index, int thread, int threads, char* shared) {
    const DepthwiseGradientShape& shape = params.shape;
    const DepthwiseTile tile = tile_of(shape, index);
    T* const memory = reinterpret_cast<T*>(shared);
    std::int32_t origin[kAxes];
    depthwise_output_origin(shape, tile, origin);
    write_depthwise_lines<S>(shape.output, tile.group * shape.group_out, origin, thread, threads,
                             reinterpret_cast<DepthwiseLine*>(memory + shape.output.table));
    std::int32_t* const columns = reinterpret_cast<std::int32_t*>(memory + shape.columns_begin);
    for (std::int32_t tap = thread; tap < shape.axis[2].filter; tap += threads) {
      columns[tap] = depthwise_column(shape.output, tap * shape.axis[2].dilation);
    }
    // The filter in its own order, for the sake of coalescing: tap fastest.
    const std::int32_t count = shape.slots * shape.group_out * shape.taps;
    const std::int32_t first = tile.group * shape.group_in;
    for (std::int32_t element = thread; element < count; element += threads) {
      const std::int32_t slot = shape.by_pair_taps.quotient(element);
      const std::int32_t pair = shape.by_pair_taps.remainder(element, slot);
      const std::int32_t out = shape.by_taps.quotient(pair), tap = shape.by_taps.remainder(pair, out);
      const std::int32_t d = shape.by_filter_hw.quotient(tap), plane = shape.by_filter_hw.remainder(tap, d);
      const std::int32_t h = shape.by_filter_w.quotient(plane), w = shape.by_filter_w.remainder(plane, h);
      const std::int64_t at = (first + slot) * shape.filter_strides[0] + out * shape.filter_strides[1] +
                              d * shape.filter_strides[2] + h * shape.filter_strides[3] + w * shape.filter_strides[4];
      const int to = slot * shape.filter_slot_pitch + out * shape.filter_out_pitch + tap * shape.filter_tap_pitch;
      memory[shape.filter_begin + to] = first + slot < shape.groups * shape.group_in
                                            ? widen(read_global(static_cast<const S*>(params.filter) + at))
                                            : T(0);
    }
  }

  static CONVT_HOST_DEVICE void load(const Params& params, std::int32_t index, int thread, int threads, char* shared) {
    const DepthwiseGradientShape& shape = params.shape;
    const DepthwiseTile tile = tile_of(shape, index);
    std::int32_t origin[kAxes];
    depthwise_output_origin(shape, tile, origin);
    load_depthwise_patch<S>(shape.output, params.output, tile.image, tile.group * shape.group_out, origin, thread,
                            threads, reinterpret_cast<T*>(shared));
  }

  // sum[r] += the products of kTaps taps of one phase along H, each a pixel further down than the one before, and of
  // all taps along W.
  template <int kTaps>
  static CONVT_HOST_DEVICE void add_taps(T (&sum)[R], const DepthwiseGradientShape& shape, const T* memory,
                                         const T* pixel, const T* filter, std::int32_t filter_step) {
    const std::int32_t* const columns = reinterpret_cast<const std::int32_t*>(memory + shape.columns_begin);
    const std::int32_t pitch = kPitch ? kPitch : shape.output_pitch;
    for (std::int32_t tw = 0; tw < shape.axis[2].filter; ++tw) {
      const T* const from = pixel + columns[tw];
      T value[R + kTaps - 1];
#pragma unroll
      for (int m = 0; m < R + kTaps - 1; ++m) value[m] = from[m * pitch];
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        const T coefficient = filter[t * filter_step];
#pragma unroll
        for (int r = 0; r < R; ++r) sum[r] += coefficient * value[r + t];
      }
      filter += shape.filter_tap_pitch;
    }
  }

  // All taps of one tap plane.
  static CONVT_HOST_DEVICE void add_plane(T (&sum)[R], const DepthwiseGradientShape& shape, const T* memory,
                                          const T* pixel, const T* filter) {
    const DepthwiseGradientAxis& h = shape.axis[1];
    const std::int32_t filter_row = shape.axis[2].filter * shape.filter_tap_pitch;
    const std::int32_t filter_next = shape.row_period * filter_row, next = shape.row_step * shape.output.row_pitch;
    for (std::int32_t first = 0; first < shape.row_classes; ++first) {
      const T* from = pixel + depthwise_row(shape.output, first * h.dilation);
      const T* coefficient = filter + first * filter_row;
      std::int32_t left = shape.by_row_period.quotient(h.filter - 1 - first) + 1;
      if (shape.consecutive_rows) {
        for (; left >= 3; left -= 3) {
          add_taps<3>(sum, shape, memory, from, coefficient, filter_next);
          from += 3 * next;
          coefficient += 3 * filter_next;
        }
        if (left == 2) {
          add_taps<2>(sum, shape, memory, from, coefficient, filter_next);
          continue;
        }
      }
      for (; left > 0; --left) {
        add_taps<1>(sum, shape, memory, from, coefficient, filter_next);
        from += next;
        coefficient += filter_next;
      }
    }
  }

  static CONVT_HOST_DEVICE void compute(const Params& params, std::int32_t index, int thread, int threads,
                                        const char* shared) {
    const DepthwiseGradientShape& shape = params.shape;
    const DepthwiseTile tile = tile_of(shape, index);
    const T* const memory = reinterpret_cast<const T*>(shared);
    const DepthwiseGradientAxis& d = shape.axis[0];
    const DepthwisePatch& output = shape.output;
    const std::int32_t all = shape.slots * shape.items;
    for (std::int32_t item = thread; item < all; item += threads) {
      std::int32_t slot, rest;
      if (shape.channels_inner) {
        rest = shape.by_slots.quotient(item);
        slot = shape.by_slots.remainder(item, rest);
      } else {
        slot = shape.by_items.quotient(item);
        rest = shape.by_items.remainder(item, slot);
      }
      const DepthwisePixels pixels = depthwise_pixels(shape, rest);
      const std::int32_t count = depthwise_pixels_that_exist(shape, tile, pixels);
      const std::int32_t channel = tile.group * shape.group_in + slot;
      if (count == 0 || channel >= shape.groups * shape.group_in) continue;
      const std::int32_t group = shape.by_group_in.quotient(slot);
      T sum[R];
#pragma unroll
      for (int r = 0; r < R; ++r) sum[r] = 0;
      const T* const first = memory + output.begin + depthwise_output_offset(shape, pixels);
      for (std::int32_t out = 0; out < shape.group_out; ++out) {
        const T* from = first + depthwise_slot(output, group * shape.group_out + out);
        const T* coefficient =
            memory + shape.filter_begin + slot * shape.filter_slot_pitch + out * shape.filter_out_pitch;
        for (std::int32_t td = 0; td < d.filter; ++td) {
          add_plane(sum, shape, memory, from, coefficient);
          from += d.dilation * output.plane_pitch;
          coefficient += shape.axis[1].filter * shape.axis[2].filter * shape.filter_tap_pitch;
        }
      }
      const DepthwisePatch& input = shape.input;
      S* const to = static_cast<S*>(params.input) + tile.image * input.strides[0] + channel * input.strides[1] +
                    (tile.pixel[0] + pixels.plane) * input.strides[2] +
                    (tile.pixel[1] + pixels.row) * input.strides[3] +
                    (tile.pixel[2] + pixels.column) * input.strides[4];
      const std::int64_t step = shape.pixel_distance * input.strides[2 + shape.pixel_axis];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (r < count) to[r * step] = narrow_to<S>(sum[r]);
      }
    }
  }

#ifdef __CUDACC__
  __device__ void operator()(const Params& params) const {
    extern __shared__ __align__(16) char shared[];
    start(params, std::int32_t(blockIdx.x), int(threadIdx.x), int(blockDim.x), shared);
    __syncthreads();
    load(params, std::int32_t(blockIdx.x), int(threadIdx.x), int(blockDim.x), shared);
    __syncthreads();
    compute(params, std::int32_t(blockIdx.x), int(threadIdx.x), int(blockDim.x), shared);
  }
#endif
};

}  // namespace convt
