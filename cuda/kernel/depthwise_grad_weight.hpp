#pragma once

#include "kernel/depthwise_gradient.hpp"

// The gradient of a depthwise problem's filter. A thread keeps a few taps of one channel pair in registers, kColumns along W
// by kRows along H, and adds all pixels of its block's tiles to them; threads that share taps are added up in a tree, blocks
// by SumPartials. A box of grad_output and one of the input lie in shared memory.
namespace convt {

template <class S, int kPitch, int kColumns, int kRows>
struct DepthwiseGradWeight {
  using T = Accumulator<S>;
  static constexpr int kMaxThreads = 256;
  static constexpr int R = kDepthwisePixels;
  static constexpr int kSums = kColumns * kRows;
  static constexpr int kMinBlocks = sizeof(S) == 8 ? 2 : 3;
  struct Params {
    DepthwiseGradientShape shape;
    const void* input;
    const void* output;                  // grad_output
    T* partial;                          // [split][tap][in_channel][out_channel]
    S* result;                           // written when there is but one split
  };

  struct Block {
    std::int32_t job, group, channel_block, split;
  };
  static CONVT_HOST_DEVICE Block block_of(const DepthwiseGradientShape& shape, std::int32_t index) {
    Block block;
    const std::int32_t channels = shape.by_job_blocks.quotient(index);
    block.job = shape.by_job_blocks.remainder(index, channels) * shape.block_jobs;
    block.split = shape.by_channel_blocks.quotient(channels);
    block.channel_block = shape.by_channel_blocks.remainder(channels, block.split);
    block.group = block.channel_block * shape.block_groups;
    return block;
  }
  // The first tile of a split; that of the one after it is its end.
  static CONVT_HOST_DEVICE std::int32_t first_tile(const DepthwiseGradientShape& shape, std::int32_t split) {
    return std::int32_t(std::int64_t(shape.tiles) * split / shape.splits);
  }

  // Taps (d, row + t * row_period, column + a) of input channel `in` and output channel `out` of a group.
  struct Job {
    std::int32_t in, out, d, row, column;
  };
  static CONVT_HOST_DEVICE Job job_of(const DepthwiseGradientShape& shape, std::int32_t index) {
    Job job;
    std::int32_t rest = shape.by_row_sets.quotient(index);
    const std::int32_t set = shape.by_row_sets.remainder(index, rest);
    index = rest;
    rest = shape.by_row_classes.quotient(index);
    job.row = shape.by_row_classes.remainder(index, rest) + set * (kRows * shape.row_period);
    index = rest;
    rest = shape.by_column_sets.quotient(index);
    job.column = shape.by_column_sets.remainder(index, rest) * kColumns;
    index = rest;
    rest = shape.by_filter_d.quotient(index);
    job.d = shape.by_filter_d.remainder(index, rest);
    job.in = shape.by_group_out.quotient(rest);
    job.out = shape.by_group_out.remainder(rest, job.in);
    return job;
  }

  // What a thread keeps from tile to tile.
  struct Thread {
    T sum[kRows][kColumns];
    std::int32_t column[kColumns];       // of the taps, in grad_output's box
    std::int32_t input, output;          // where the channels begin in the boxes
    std::int32_t lane;                   // among the threads with these taps; -1: none
  };

  static CONVT_HOST_DEVICE void start(const DepthwiseGradientShape& shape, std::int32_t index, int thread,
                                      Thread& own) {
    const Block block = block_of(shape, index);
    std::int32_t slot, job;
    if (shape.channels_inner) {
      const std::int32_t rest = shape.by_slots.quotient(thread);
      slot = shape.by_slots.remainder(thread, rest);
      own.lane = shape.by_block_jobs.quotient(rest);
      job = shape.by_block_jobs.remainder(rest, own.lane);
    } else {
      const std::int32_t rest = shape.by_lanes.quotient(thread);
      own.lane = shape.by_lanes.remainder(thread, rest);
      slot = shape.by_block_jobs.quotient(rest);
      job = shape.by_block_jobs.remainder(rest, slot);
    }
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
#pragma unroll
      for (int a = 0; a < kColumns; ++a) own.sum[t][a] = 0;
    }
    if (slot >= shape.slots || own.lane >= shape.lanes || block.job + job >= shape.jobs) {
      own.lane = -1;
      return;
    }
    const Job taps = job_of(shape, block.job + job);
    const DepthwiseGradientAxis& w = shape.axis[2];
#pragma unroll
    for (int a = 0; a < kColumns; ++a) {
      // Taps that do not exist are summed, and not stored.
      const std::int32_t tap = taps.column + a < w.filter ? taps.column + a : w.filter - 1;
      own.column[a] = depthwise_column(shape.output, tap * w.dilation);
    }
    own.input = shape.input.begin + depthwise_slot(shape.input, slot * shape.group_in + taps.in) +
                depthwise_column(shape.input, 0);
    own.output = shape.output.begin + depthwise_slot(shape.output, slot * shape.group_out + taps.out) +
                 taps.d * shape.axis[0].dilation * shape.output.plane_pitch +
                 depthwise_row(shape.output, taps.row * shape.axis[1].dilation);
  }

  static CONVT_HOST_DEVICE DepthwiseTile tile_of(const DepthwiseGradientShape& shape, const Block& block,
                                                 std::int32_t index) {
    DepthwiseTile tile;
    tile.image = depthwise_tile_pixels(shape, index, tile);
    tile.group = block.group;
    return tile;
  }

  // The lines of a tile's boxes; written while the tile before it is added.
  static CONVT_HOST_DEVICE void write_lines(const DepthwiseGradientShape& shape, std::int32_t index,
                                            std::int32_t tile_index, int thread, int threads, char* shared) {
    const DepthwiseTile tile = tile_of(shape, block_of(shape, index), tile_index);
    T* const memory = reinterpret_cast<T*>(shared);
    std::int32_t origin[kAxes];
    depthwise_output_origin(shape, tile, origin);
    write_depthwise_lines<S>(shape.output, tile.group * shape.group_out, origin, thread, threads,
                             reinterpret_cast<DepthwiseLine*>(memory + shape.output.table));
    write_depthwise_lines<S>(shape.input, tile.group * shape.group_in, tile.pixel, thread, threads,
                             reinterpret_cast<DepthwiseLine*>(memory + shape.input.table));
  }

  static CONVT_HOST_DEVICE void load(const Params& params, std::int32_t index, std::int32_t tile_index, int thread,
                                     int threads, char* shared) {
    const DepthwiseGradientShape& shape = params.shape;
    const DepthwiseTile tile = tile_of(shape, block_of(shape, index), tile_index);
    T* const memory = reinterpret_cast<T*>(shared);
    std::int32_t origin[kAxes];
    depthwise_output_origin(shape, tile, origin);
    load_depthwise_patch<S>(shape.output, params.output, tile.image, tile.group * shape.group_out, origin, thread,
                            threads, memory);
    load_depthwise_patch<S>(shape.input, params.input, tile.image, tile.group * shape.group_in, tile.pixel, thread,
                            threads, memory);
  }

  static CONVT_HOST_DEVICE void add_tile(const Params& params, std::int32_t index, std::int32_t tile_index,
                                         const char* shared, Thread& own) {
    const DepthwiseGradientShape& shape = params.shape;
    if (own.lane < 0) return;
    const DepthwiseTile tile = tile_of(shape, block_of(shape, index), tile_index);
    const T* const memory = reinterpret_cast<const T*>(shared);
    T part[kRows][kColumns] = {};   // of this tile: one long chain of additions would round more
    for (std::int32_t item = own.lane; item < shape.items; item += shape.lanes) {
      const DepthwisePixels pixels = depthwise_pixels(shape, item);
      const std::int32_t count = depthwise_pixels_that_exist(shape, tile, pixels);
      const T* const input = memory + own.input + pixels.plane * shape.input.plane_pitch +
                             pixels.row * shape.input.row_pitch + pixels.column * shape.input.column_pitch;
      const T* const output = memory + own.output + depthwise_output_offset(shape, pixels);
      if (count == R) {
        add_pixels(shape, input, output, own, part);
      } else {
        add_some_pixels(shape, input, output, count, own, part);
      }
    }
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
#pragma unroll
      for (int a = 0; a < kColumns; ++a) own.sum[t][a] += part[t][a];
    }
  }

  static CONVT_HOST_DEVICE void add_pixels(const DepthwiseGradientShape& shape, const T* input, const T* output,
                                           const Thread& own, T (&sum)[kRows][kColumns]) {
    const std::int32_t input_pitch = kPitch ? kPitch : shape.input_pitch;
    const std::int32_t output_pitch = kPitch ? kPitch : shape.output_pitch;
    T pixel[R];
#pragma unroll
    for (int r = 0; r < R; ++r) pixel[r] = input[r * input_pitch];
#pragma unroll
    for (int a = 0; a < kColumns; ++a) {
      const T* const from = output + own.column[a];
      T value[R + kRows - 1];
#pragma unroll
      for (int m = 0; m < R + kRows - 1; ++m) value[m] = from[m * output_pitch];
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
        T part = pixel[0] * value[t];
#pragma unroll
        for (int r = 1; r < R; ++r) part += pixel[r] * value[r + t];
        sum[t][a] += part;
      }
    }
  }

  // At the end of an axis: what does not exist is multiplied with nothing, be it infinite.
  static CONVT_HOST_DEVICE void add_some_pixels(const DepthwiseGradientShape& shape, const T* input, const T* output,
                                                std::int32_t count, const Thread& own, T (&sum)[kRows][kColumns]) {
    const std::int32_t input_pitch = kPitch ? kPitch : shape.input_pitch;
    const std::int32_t output_pitch = kPitch ? kPitch : shape.output_pitch;
    for (std::int32_t r = 0; r < count; ++r) {
      const T pixel = input[r * input_pitch];
#pragma unroll
      for (int a = 0; a < kColumns; ++a) {
#pragma unroll
        for (int t = 0; t < kRows; ++t) {
          sum[t][a] += pixel * output[own.column[a] + (r + t) * output_pitch];
        }
      }
    }
  }

  // Sums of all threads: [lane][slot][job][tap].
  static CONVT_HOST_DEVICE std::int32_t sums_of(const DepthwiseGradientShape& shape) {
    return shape.slots * shape.block_jobs * kSums;
  }
  static CONVT_HOST_DEVICE void put(const DepthwiseGradientShape& shape, int thread, char* shared, const Thread& own) {
    if (thread >= shape.slots * shape.block_jobs * shape.lanes) return;
    std::int32_t lane, sums;
    if (shape.channels_inner) {
      const std::int32_t rest = shape.by_slots.quotient(thread), slot = shape.by_slots.remainder(thread, rest);
      lane = shape.by_block_jobs.quotient(rest);
      sums = slot * shape.block_jobs + shape.by_block_jobs.remainder(rest, lane);
    } else {
      sums = shape.by_lanes.quotient(thread);
      lane = shape.by_lanes.remainder(thread, sums);
    }
    T* const to = reinterpret_cast<T*>(shared) + lane * sums_of(shape) + sums * kSums;
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
#pragma unroll
      for (int a = 0; a < kColumns; ++a) to[t * kColumns + a] = own.sum[t][a];
    }
  }

  // Adds the upper half of 2 * lanes lanes to the lower one.
  static CONVT_HOST_DEVICE void halve(const DepthwiseGradientShape& shape, std::int32_t lanes, int thread, int threads,
                                      char* shared) {
    T* const sums = reinterpret_cast<T*>(shared);
    const std::int32_t count = sums_of(shape) * lanes;
    for (std::int32_t at = thread; at < count; at += threads) sums[at] += sums[at + count];
  }

  static CONVT_HOST_DEVICE void store(const Params& params, std::int32_t index, int thread, int threads,
                                      const char* shared) {
    const DepthwiseGradientShape& shape = params.shape;
    const Block block = block_of(shape, index);
    const T* const sums = reinterpret_cast<const T*>(shared);
    for (std::int32_t at = thread; at < sums_of(shape); at += threads) {
      const std::int32_t team = at / kSums, sum = at - team * kSums;
      const std::int32_t slot = shape.by_block_jobs.quotient(team);
      const std::int32_t job_index = block.job + shape.by_block_jobs.remainder(team, slot);
      const std::int32_t group = block.group + slot;
      if (job_index >= shape.jobs || group >= shape.groups) continue;
      const Job job = job_of(shape, job_index);
      const std::int32_t row = job.row + sum / kColumns * shape.row_period, column = job.column + sum % kColumns;
      if (row >= shape.axis[1].filter || column >= shape.axis[2].filter) continue;
      const std::int64_t in_channel = group * shape.group_in + job.in;
      if (shape.splits == 1) {
        const std::int64_t to = in_channel * shape.filter_strides[0] + job.out * shape.filter_strides[1] +
                                job.d * shape.filter_strides[2] + row * shape.filter_strides[3] +
                                column * shape.filter_strides[4];
        params.result[to] = narrow_to<S>(sums[at]);
      } else {
        const std::int64_t tap = (std::int64_t(job.d) * shape.axis[1].filter + row) * shape.axis[2].filter + column;
        const std::int64_t pairs = std::int64_t(shape.groups) * shape.group_in * shape.group_out;
        params
            .partial[(block.split * std::int64_t(shape.taps) + tap) * pairs + in_channel * shape.group_out + job.out] =
            sums[at];
      }
    }
  }

#ifdef __CUDACC__
  __device__ void operator()(const Params& params) const {
    extern __shared__ __align__(16) char shared[];
    const DepthwiseGradientShape& shape = params.shape;
    const std::int32_t index = std::int32_t(blockIdx.x);
    const int thread = int(threadIdx.x), threads = int(blockDim.x);
    Thread own;
    start(shape, index, thread, own);
    const std::int32_t split = block_of(shape, index).split, end = first_tile(shape, split + 1);
    std::int32_t tile = first_tile(shape, split);
    write_lines(shape, index, tile, thread, threads, shared);
    __syncthreads();
    for (; tile < end; ++tile) {
      load(params, index, tile, thread, threads, shared);
      __syncthreads();
      if (tile + 1 < end) write_lines(shape, index, tile + 1, thread, threads, shared);
      add_tile(params, index, tile, shared, own);
      __syncthreads();
    }
    put(shape, thread, shared, own);
    __syncthreads();
    for (std::int32_t lanes = shape.lanes / 2; lanes > 0; lanes /= 2) {
      halve(shape, lanes, thread, threads, shared);
      __syncthreads();
    }
    store(params, index, thread, threads, shared);
  }
#endif
};

}  // namespace convt
