#pragma once

#include <type_traits>

#include "kernel/depthwise_setup.hpp"

// Depthwise and tiny groups: every input pixel is fetched once, a thread sums several output rows of one phase in
// registers, and a warp's stores are contiguous.
namespace convt {

// sum[r] += the products of kTaps consecutive row taps: tap t has the coefficient filter[t * filter_step] and reads
// patch row r - t, for one row of pixels per t at `patch`.
template <int kTaps, int kRows, class T>
CONVT_HOST_DEVICE inline void add_depthwise_column(T (&sum)[kRows], const T* patch, const T* filter,
                                                   std::int32_t filter_step) {
  T pixel[kRows + kTaps - 1];
#pragma unroll
  for (int m = 0; m < kRows + kTaps - 1; ++m) pixel[m] = patch[(m - (kTaps - 1)) * kDepthwisePitch];
#pragma unroll
  for (int t = 0; t < kTaps; ++t) {
    const T coefficient = filter[t * filter_step];
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum[r] += coefficient * pixel[r + kTaps - 1 - t];
  }
}

// Lanes along the output row: any strides, made for contiguous ones. The patch lies in shared memory as accumulators,
// [stacked group][plane][row][pitch], a row holding the block's input channels side by side.
template <class S>
struct DepthwiseRows {
  using T = Accumulator<S>;
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = sizeof(S) == 8 ? 2 : sizeof(S) == 4 ? 4 : 3;
  static constexpr int R = depthwise_rows(sizeof(S));
  struct Params {
    DepthwiseShape shape;
    DirectOperands data;
    EpilogueProgram<T> program;
  };

  static CONVT_HOST_DEVICE void load(const Params& params, std::int32_t index, int thread, int threads, char* shared) {
    const DepthwiseShape& shape = params.shape;
    const DepthwiseBlock block = depthwise_block(shape, index);
    load_depthwise_filter<S>(shape, params.data, block, thread, threads, shared, 1);

    const std::int32_t width = shape.patch_width;
    const std::int32_t lane_row = thread / width, lane = thread % width;
    if (lane_row >= shape.patch_lanes) return;
    const DepthwiseAxis &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
    const std::int32_t slot = lane / w.patch, column = block.q[2] - w.max_shift + lane % w.patch;
    const std::int32_t first_plane = block.q[0] - d.max_shift, first_row = block.q[1] - h.max_shift;
    T* const patch = reinterpret_cast<T*>(shared + shape.patch_bytes) + lane;
    for (int slab = 0; slab < shape.stacked_groups * d.patch; ++slab) {
      const std::int32_t stack = slab / d.patch, plane = first_plane + slab % d.patch;
      const std::int32_t channel = (block.group + stack * shape.lane_groups) * shape.group_in + slot;
      const bool exists = channel < shape.groups * shape.group_in && std::uint32_t(plane) < std::uint32_t(d.input);
      const S* const source = static_cast<const S*>(params.data.input) + block.image * shape.strides.input[0] +
                              channel * shape.strides.input[1] + plane * shape.strides.input[2] +
                              column * shape.strides.input[4];
      // Four loads in flight.
      for (int row = lane_row; row < h.patch; row += 4 * shape.patch_lanes) {
        T value[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const std::int32_t at = first_row + row + k * shape.patch_lanes;
          const bool valid = exists && std::uint32_t(at) < std::uint32_t(h.input) &&
                             std::uint32_t(column + at * shape.fold_input) < std::uint32_t(w.input);
          // No branch stands between the loads: what does not exist is read from the first element and dropped.
          const S* const from = valid ? source + at * shape.strides.input[3] : static_cast<const S*>(params.data.input);
          const T read = widen(read_global(from));
          value[k] = valid ? read : T(0);
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const std::int32_t at = row + k * shape.patch_lanes;
          if (at < h.patch) patch[(slab * h.patch + at) * kDepthwisePitch] = value[k];
        }
      }
    }
  }

  static CONVT_HOST_DEVICE void compute(const Params& params, std::int32_t index, int thread, const char* shared) {
    const DepthwiseShape& shape = params.shape;
    const DepthwiseBlock block = depthwise_block(shape, index);
    const std::int32_t lane_row = thread / shape.lanes, lane = thread % shape.lanes;
    if (lane_row >= shape.lane_rows) return;
    const DepthwiseAxis &d = shape.axis[0], &h = shape.axis[1], &w = shape.axis[2];
    const DepthwisePhase* const phases = reinterpret_cast<const DepthwisePhase*>(shared);
    const T* const filter = reinterpret_cast<const T*>(shared + shape.filter_bytes);
    const T* const patch = reinterpret_cast<const T*>(shared + shape.patch_bytes);

    const std::int32_t slot = shape.by_tile_w.quotient(lane);   // output channel among the lanes
    const std::int32_t column = block.output[2] + shape.by_tile_w.remainder(lane, slot);
    const std::int32_t row_limit = depthwise_row_limit(shape, column);
    const std::int32_t column_q = w.by_stride.quotient(column + w.padding);
    const DepthwisePhase column_taps = phases[w.phase_begin + w.by_stride.remainder(column + w.padding, column_q)];
    const std::int32_t in_slot = shape.by_channels_out.quotient(slot) * shape.group_in;
    const std::int32_t patch_column = in_slot * w.patch + column_q - block.q[2] + w.max_shift - column_taps.shift;
    const std::int32_t tap_step = w.period;
    const std::int32_t items = depthwise_items(shape);

    for (std::int32_t item_index = lane_row; item_index < items; item_index += shape.lane_rows) {
      const DepthwiseItem item = depthwise_item<R>(shape, block, item_index, phases);
      const std::int32_t group_slot = item.stack * shape.lane_groups;
      const std::int32_t channel = (block.group + group_slot) * shape.group_out + slot;
      if (item.plane >= d.output || item.row >= row_limit || channel >= shape.groups * shape.group_out) continue;
      const T start = params.data.bias
                          ? widen(read_global(static_cast<const S*>(params.data.bias) + channel * shape.strides.bias))
                          : T(0);
      T sum[R];
#pragma unroll
      for (int r = 0; r < R; ++r) sum[r] = start;

      const std::int32_t plane = item.stack * d.patch + item.plane_q - block.q[0] + d.max_shift - item.plane_taps.shift;
      const std::int32_t row = item.row_q - block.q[1] + h.max_shift - item.row_taps.shift;
      const std::int32_t first_tap = ((group_slot * shape.group_out + slot) * shape.group_in) * shape.taps +
                                     item.plane_taps.first * d.filter_step + item.row_taps.first * h.filter_step +
                                     column_taps.first;
      for (int in = 0; in < shape.group_in; ++in) {
        for (int td = 0; td < item.plane_taps.count; ++td) {
          const T* pixel =
              patch + ((plane - td * d.shift_step) * h.patch + row) * kDepthwisePitch + patch_column + in * w.patch;
          const T* coefficient = filter + first_tap + in * shape.taps + td * d.period * d.filter_step;
          for (int tw = 0; tw < column_taps.count; ++tw, pixel -= w.shift_step, coefficient += tap_step) {
            add_row_taps(sum, shape, item.row_taps.count, pixel, coefficient);
          }
        }
      }

      S* const output = static_cast<S*>(params.data.output) + block.image * shape.strides.output[0] +
                        channel * shape.strides.output[1] + item.plane * shape.strides.output[2] +
                        item.row * shape.strides.output[3] + column * shape.strides.output[4];
      const std::int64_t step = h.taps.stride * shape.strides.output[3];
      if (params.program.count > 0) {
        map_rows(params, sum, depthwise_rows_of(shape, item.row, column), block.image, channel, item.plane,
                 (row_limit - item.row + std::int32_t(h.taps.stride) - 1) / std::int32_t(h.taps.stride));
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (item.row + r * std::int32_t(h.taps.stride) < row_limit) output[r * step] = narrow_to<S>(sum[r]);
      }
    }
  }

  // The program on the first `left` rows, a few at a time: all of them and an operand for each take too many registers.
  static CONVT_HOST_DEVICE void map_rows(const Params& params, T (&sum)[R], const DepthwiseRowsOf& rows,
                                         std::int32_t image, std::int32_t channel, std::int32_t plane,
                                         std::int32_t left) {
    constexpr int kPart = 8;
    static_assert(R % kPart == 0, "whole parts");
    OutputPlace place{{image, channel, plane, rows.row, rows.column}};
#pragma unroll 1
    for (int first = 0; first < R; first += kPart) {
      T part[kPart];
      std::uint32_t exists = 0;
#pragma unroll
      for (int r = 0; r < kPart; ++r) {
        part[r] = sum[r];
        exists |= std::uint32_t(first + r < left) << r;
      }
      apply_program<S>(params.program, part, exists, place, rows.axis, rows.row_step + rows.column_step);
      place.at[3] += kPart * rows.row_step;
      place.at[4] += kPart * rows.column_step;
#pragma unroll
      for (int r = 0; r < R - kPart; ++r) sum[r] = sum[r + kPart];
#pragma unroll
      for (int r = 0; r < kPart; ++r) sum[R - kPart + r] = part[r];
    }
  }

  static CONVT_HOST_DEVICE void add_row_taps(T (&sum)[R], const DepthwiseShape& shape, std::int32_t count,
                                             const T* pixel, const T* coefficient) {
    const DepthwiseAxis& h = shape.axis[1];
    const std::int32_t step = h.period * h.filter_step;
    std::int32_t t = 0;
    if (h.shift_step == 1) {
      for (; t + 4 <= count; t += 4) {
        add_depthwise_column<4>(sum, pixel - t * kDepthwisePitch, coefficient + t * step, step);
      }
      for (; t + 2 <= count; t += 2) {
        add_depthwise_column<2>(sum, pixel - t * kDepthwisePitch, coefficient + t * step, step);
      }
    }
    for (; t < count; ++t) {
      add_depthwise_column<1>(sum, pixel - t * h.shift_step * kDepthwisePitch, coefficient + t * step, step);
    }
  }

#ifdef __CUDACC__
  __device__ void operator()(const Params& params) const {
    extern __shared__ __align__(16) char shared[];
    load(params, std::int32_t(blockIdx.x), int(threadIdx.x), int(blockDim.x), shared);
    __syncthreads();
    compute(params, std::int32_t(blockIdx.x), int(threadIdx.x), shared);
  }
#endif
};

// Lanes along the channels, kLanes of them per thread: 16 bytes of a depthwise problem whose strides and pointers allow
// it, or one. Input pixels come through L1.
template <class S, int kLanes>
struct DepthwiseChannels {
  static_assert(kLanes == 1 || kLanes == kPacked<S>, "one channel, or 16 bytes of them");
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = kLanes == 1 && sizeof(S) < 8 ? 3 : 2;
  static constexpr int R = kDepthwiseChannelsRows;
  using T = Accumulator<S>;
  using Params = typename DepthwiseRows<S>::Params;

  static CONVT_HOST_DEVICE std::int32_t tap_pitch(const DepthwiseShape& shape) {
    return shape.lane_groups * shape.stacked_groups * shape.group_out;
  }

  static CONVT_HOST_DEVICE void load(const Params& params, std::int32_t index, int thread, int threads, char* shared) {
    load_depthwise_filter<S>(params.shape, params.data, depthwise_block(params.shape, index), thread, threads, shared,
                             tap_pitch(params.shape));
  }

  // What one load brings, before conversion. A pixel that does not exist is read from the first element instead, so that
  // no branch stands between the loads, and counts as zero.
  struct Raw {
    std::conditional_t<kLanes == 1, S, Vector16> bits;
    bool valid;
  };
  static CONVT_HOST_DEVICE Raw read(const S* from, const S* first, bool valid) {
    const S* const source = valid ? from : first;
    if constexpr (kLanes == 1) {
      return {read_global(source), valid};
    } else {
      return {read_global16(source), valid};
    }
  }
  static CONVT_HOST_DEVICE void widen_raw(T (&to)[kLanes], const Raw& raw) {
    if constexpr (kLanes == 1) {
      to[0] = raw.valid ? widen(raw.bits) : T(0);
    } else {
      Vector16 bits;
#pragma unroll
      for (int word = 0; word < 4; ++word) bits.word[word] = raw.valid ? raw.bits.word[word] : 0;
      unpack<S>(bits, to);
    }
  }

  struct Tap {
    std::int32_t in_channel, out_channel;   // of all groups, of the group
    std::int32_t d, h, w;
  };

  // Coefficients of one tap, from shared memory or, one channel only, from global memory when it is too large for that.
  static CONVT_HOST_DEVICE void read_filter(T (&to)[kLanes], const Params& params, const T* shared, const Tap& tap) {
    if constexpr (kLanes == 1) {
      if (params.shape.filter_in_shared) {
        to[0] = *shared;
        return;
      }
      const DirectStrides& strides = params.shape.strides;
      to[0] = widen(read_global(static_cast<const S*>(params.data.filter) + tap.in_channel * strides.filter[0] +
                                tap.out_channel * strides.filter[1] + tap.d * strides.filter[2] +
                                tap.h * strides.filter[3] + tap.w * strides.filter[4]));
    } else {
      constexpr int kVector = 16 / sizeof(T);
#pragma unroll
      for (int piece = 0; piece < kLanes / kVector; ++piece) {
        const SharedVector<T> vector = reinterpret_cast<const SharedVector<T>*>(shared)[piece];
#pragma unroll
        for (int lane = 0; lane < kVector; ++lane) to[piece * kVector + lane] = vector.lane[lane];
      }
    }
  }

  template <int kTaps>
  static CONVT_HOST_DEVICE void add_column(T (&sum)[R][kLanes], const Params& params, const S* pixel, std::int32_t row,
                                           std::int32_t column, const T* shared, Tap tap) {
    const DepthwiseShape& shape = params.shape;
    const DepthwiseAxis &h = shape.axis[1], &w = shape.axis[2];
    T coefficient[kTaps][kLanes];
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      read_filter(coefficient[t], params, shared + t * h.period * h.filter_step * tap_pitch(shape), tap);
      tap.h += h.period;
    }
    Raw raw[R + kTaps - 1];
#pragma unroll
    for (int m = 0; m < R + kTaps - 1; ++m) {
      const std::int32_t at = row + m - (kTaps - 1);
      raw[m] = read(pixel + (m - (kTaps - 1)) * shape.strides.input[3], static_cast<const S*>(params.data.input),
                    std::uint32_t(at) < std::uint32_t(h.input) &&
                        std::uint32_t(column + at * shape.fold_input) < std::uint32_t(w.input));
    }
#pragma unroll
    for (int m = 0; m < R + kTaps - 1; ++m) {
      T value[kLanes];
      widen_raw(value, raw[m]);
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        const int r = m - (kTaps - 1) + t;
        if (r < 0 || r >= R) continue;
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) sum[r][lane] += coefficient[t][lane] * value[lane];
      }
    }
  }

  static CONVT_HOST_DEVICE void compute(const Params& params, std::int32_t index, int thread, const char* shared) {
    const DepthwiseShape& shape = params.shape;
    const DepthwiseBlock block = depthwise_block(shape, index);
    const DepthwiseAxis &d = shape.axis[0], &w = shape.axis[2];
    const DepthwisePhase* const phases = reinterpret_cast<const DepthwisePhase*>(shared);
    const T* const filter = reinterpret_cast<const T*>(shared + shape.filter_bytes);

    // lanes = threads along the channels; a row of threads has tile_w of them side by side.
    const std::int32_t pixel_lane = thread / shape.lanes, local = thread % shape.lanes * kLanes;
    const std::int32_t lane_row = shape.by_tile_w.quotient(pixel_lane);
    const std::int32_t column = block.output[2] + shape.by_tile_w.remainder(pixel_lane, lane_row);
    const std::int32_t row_limit = depthwise_row_limit(shape, column);
    const std::int32_t channel = block.group * shape.group_out + local;
    if (lane_row >= shape.lane_rows || channel >= shape.groups * shape.group_out) return;
    const std::int32_t group = shape.by_channels_out.quotient(channel);
    const std::int32_t column_q = w.by_stride.quotient(column + w.padding);
    const DepthwisePhase column_taps = phases[w.phase_begin + w.by_stride.remainder(column + w.padding, column_q)];
    const std::int32_t items = depthwise_items(shape);

    for (std::int32_t item_index = lane_row; item_index < items; item_index += shape.lane_rows) {
      const DepthwiseItem item = depthwise_item<R>(shape, block, item_index, phases);
      if (item.plane >= d.output || item.row >= row_limit) continue;
      T sum[R][kLanes];
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        const T start =
            params.data.bias
                ? widen(read_global(static_cast<const S*>(params.data.bias) + (channel + lane) * shape.strides.bias))
                : T(0);
#pragma unroll
        for (int r = 0; r < R; ++r) sum[r][lane] = start;
      }
      for (int in = 0; in < shape.group_in; ++in) {
        const std::int32_t in_channel = group * shape.group_in + in;
        for (int td = 0; td < item.plane_taps.count; ++td) {
          const std::int32_t plane = item.plane_q - item.plane_taps.shift - td * d.shift_step;
          const std::int32_t tap_d = item.plane_taps.first + td * d.period;
          if (std::uint32_t(plane) >= std::uint32_t(d.input)) continue;
          for (int tw = 0; tw < column_taps.count; ++tw) {
            const std::int32_t at = column_q - column_taps.shift - tw * w.shift_step;
            if (!shape.fold_input && std::uint32_t(at) >= std::uint32_t(w.input)) continue;
            const S* const line = static_cast<const S*>(params.data.input) + block.image * shape.strides.input[0] +
                                  in_channel * shape.strides.input[1] + plane * shape.strides.input[2] +
                                  at * shape.strides.input[4];
            const std::int32_t tap_w = column_taps.first + tw * w.period;
            const std::int32_t element = in * shape.taps + tap_d * d.filter_step + tap_w;
            add_row_taps(sum, params, item, line, at, filter + element * tap_pitch(shape) + local,
                         {in_channel, channel - group * shape.group_out, tap_d, 0, tap_w});
          }
        }
      }
      store(params, block, item, channel, column, row_limit, sum);
    }
  }

  static CONVT_HOST_DEVICE void add_row_taps(T (&sum)[R][kLanes], const Params& params, const DepthwiseItem& item,
                                             const S* line, std::int32_t column, const T* shared, Tap tap) {
    const DepthwiseShape& shape = params.shape;
    const DepthwiseAxis& h = shape.axis[1];
    const std::int32_t count = item.row_taps.count, row = item.row_q - item.row_taps.shift;
    const std::int32_t step = h.period * h.filter_step * tap_pitch(shape);
    const T* coefficient = shared + item.row_taps.first * h.filter_step * tap_pitch(shape);
    tap.h = item.row_taps.first;
    std::int32_t t = 0;
    if (h.shift_step == 1) {
      for (; t + 2 <= count; t += 2, coefficient += 2 * step, tap.h += 2 * h.period) {
        add_column<2>(sum, params, line + (row - t) * shape.strides.input[3], row - t, column, coefficient, tap);
      }
    }
    for (; t < count; ++t, coefficient += step, tap.h += h.period) {
      const std::int32_t at = row - t * h.shift_step;
      add_column<1>(sum, params, line + at * shape.strides.input[3], at, column, coefficient, tap);
    }
  }

  static CONVT_HOST_DEVICE void store(const Params& params, const DepthwiseBlock& block, const DepthwiseItem& item,
                                      std::int32_t channel, std::int32_t column, std::int32_t row_limit,
                                      T (&sum)[R][kLanes]) {
    const DepthwiseShape& shape = params.shape;
    const DepthwiseAxis& h = shape.axis[1];
    S* const output = static_cast<S*>(params.data.output) + block.image * shape.strides.output[0] +
                      channel * shape.strides.output[1] + item.plane * shape.strides.output[2] +
                      item.row * shape.strides.output[3] + column * shape.strides.output[4];
    const std::int64_t step = h.taps.stride * shape.strides.output[3];
    if (params.program.count > 0) {
      const DepthwiseRowsOf rows = depthwise_rows_of(shape, item.row, column);
      OutputPlace place{{block.image, channel, item.plane, rows.row, rows.column}};
      // Written once, not once per row: the rows take turns.
#pragma unroll 1
      for (int r = 0; r < R; ++r) {
        T first[kLanes];
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) first[lane] = sum[0][lane];
        if (item.row + r * std::int32_t(h.taps.stride) < row_limit) {
          apply_program<S>(params.program, first, (1u << kLanes) - 1, place, 1, 1);
        }
        place.at[3] += rows.row_step;
        place.at[4] += rows.column_step;
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) {
#pragma unroll
          for (int next = 1; next < R; ++next) sum[next - 1][lane] = sum[next][lane];
          sum[R - 1][lane] = first[lane];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (item.row + r * std::int32_t(h.taps.stride) >= row_limit) continue;
      if constexpr (kLanes == 1) {
        output[r * step] = narrow_to<S>(sum[r][0]);
      } else {
        write_global16(output + r * step, pack_as<S>(sum[r]));
      }
    }
  }

#ifdef __CUDACC__
  __device__ void operator()(const Params& params) const {
    extern __shared__ __align__(16) char shared[];
    load(params, std::int32_t(blockIdx.x), int(threadIdx.x), int(blockDim.x), shared);
    __syncthreads();
    compute(params, std::int32_t(blockIdx.x), int(threadIdx.x), shared);
  }
#endif
};

}  // namespace convt
