#pragma once

#include "arch/copy.hpp"
#include "arch/pointwise.hpp"
#include "kernel/simt_setup.hpp"

// Any operator on CUDA cores. A block computes channels x pixels of one phase, K running over the positions that its pixels
// meet and over the depth; the threads of a block may share a product by slices of K, and blocks by ranges of K.
namespace convt {

template <class S, Operator op>
struct Simt : SimtLayout {
  using Setup = SimtSetup<op>;
  static constexpr bool kForward = Setup::kForward;
  static constexpr int kMaxThreads = 256;
  static constexpr int kMinBlocks = 2;
  using T = Accumulator<S>;
  static constexpr int kVector = 16 / int(sizeof(T));
  struct Params {
    SimtShape shape;
    SimtOperands data;
    EpilogueProgram<T> program;  // forward
  };

  // What a thread keeps from one barrier to the next.
  struct Thread {
    T sum[RM][RN];
  };

  // Rows of a stage are one vector longer than the tile: lanes along K then meet few bank conflicts.
  static CONVT_HOST_DEVICE int channel_pitch(const SimtShape& shape) { return tile_channels(shape) + kVector; }
  static CONVT_HOST_DEVICE int pixel_pitch(const SimtShape& shape) { return tile_pixels(shape) + kVector; }

  // The pixel table, this thread's rows of the first chunk, sums at zero.
  static CONVT_HOST_DEVICE void start(const Params& params, int thread, char* shared, Thread& state) {
    const SimtShape& shape = params.shape;
    const SimtBlock& block = *block_at(shared);
    const std::int64_t pixels = Setup::pixels_of(shape, block);
    const std::int64_t first = block.pixel;
    for (int p = thread; p < tile_pixels(shape); p += threads_of(shape)) {
      SimtPixel pixel{0, 0, {kSimtNowhere, kSimtNowhere, kSimtNowhere}, first + p < pixels};
      std::int64_t rest = first + p;
      // The gradients' shifts leave no place for nowhere: pixels beyond the last one repeat it, and nobody stores them.
      if (!kForward && !pixel.exists) rest = pixels - 1;
      if (!kForward || pixel.exists) {
        std::int64_t outer = 0;
        if (shape.outer_fastest) outer = simt_split(rest, shape.outer);
#pragma unroll
        for (int a = kAxes - 1; a >= 0; --a) {
          const SimtAxis& axis = shape.axis[a];
          const std::int64_t at = block.axis[a].q_begin + simt_split(rest, block.axis[a].q_count);
          const std::int64_t q = kForward ? at : axis.q_first + axis.q_step * at;
          pixel.q[a] = std::uint32_t(q);
          pixel.gathered += q * shape.strides.gathered.axis[a];
          pixel.result += (kForward ? axis.taps.stride * q + block.axis[a].phase - axis.padding : at) *
                          shape.strides.result.axis[a];
        }
        if (!shape.outer_fastest) outer = rest;
        pixel.gathered += outer * shape.strides.gathered.outer;
        pixel.result += outer * shape.strides.result.outer;
      }
      pixels_at(shape, shared)[p] = pixel;
    }
#pragma unroll
    for (int m = 0; m < RM; ++m) {
#pragma unroll
      for (int n = 0; n < RN; ++n) state.sum[m][n] = 0;
    }
    if (Setup::rows_of_product(shape, block) == 0) return;
    const Digits extent = digits_of(shape, block);
    for (int row = thread; row < chunk_of(shape); row += threads_of(shape)) {
      std::int64_t at = row, step = chunk_of(shape);
      if constexpr (Setup::kSplits) at += Setup::first_chunk(shape, block) * step;
      SimtCursor& cursor = cursors_at(shape, shared)[row];
#pragma unroll
      for (int place = 0; place < kAxes; ++place) {
        cursor.digit[place] = std::int32_t(simt_split(at, extent.of[place]));
        cursor.step[place] = std::int32_t(simt_split(step, extent.of[place]));
      }
      cursor.digit[kAxes] = std::int32_t(at);
      cursor.step[kAxes] = std::int32_t(step);
    }
  }

  // --- per chunk ---

  static CONVT_HOST_DEVICE bool depth_fastest(const SimtShape& shape) {
    return kForward || (op == Operator::grad_input && shape.depth_fastest);
  }

  // Extents of a cursor's digits, the fastest first.
  struct Digits {
    std::int64_t of[1 + kAxes];
  };
  static CONVT_HOST_DEVICE Digits digits_of(const SimtShape& shape, const SimtBlock& block) {
    const std::int64_t d = block.axis[0].tap_count, h = block.axis[1].tap_count, w = block.axis[2].tap_count;
    if (depth_fastest(shape)) return {shape.depth, w, h, d};
    return {w, h, d, shape.depth};
  }

  // Writes the records of this thread's rows of `chunk` and moves on by one chunk.
  static CONVT_HOST_DEVICE void write_row(const Params& params, int chunk, int thread, char* shared) {
    const SimtShape& shape = params.shape;
    const SimtBlock& block = *block_at(shared);
    for (int k = thread; k < chunk_of(shape); k += threads_of(shape)) {
      SimtCursor cursor = cursors_at(shape, shared)[k];
      const bool deep = depth_fastest(shape);
      const std::int64_t depth = deep ? cursor.digit[0] : cursor.digit[kAxes];
      SimtRow row;
      row.gathered = depth * shape.strides.gathered.depth;
      row.plain = depth * shape.strides.plain.depth;
#pragma unroll
      for (int a = 0; a < kAxes; ++a) {
        const std::int64_t t = deep ? cursor.digit[kAxes - a] : cursor.digit[kAxes - 1 - a];
        const std::int64_t shift = block.axis[a].shift_first + t * shape.axis[a].shift_step;
        row.shift[a] = std::uint32_t(shift);
        row.gathered -= shift * shape.strides.gathered.axis[a];
        row.plain +=
            (block.axis[a].tap_first + (kForward ? t * shape.axis[a].taps.period : t)) * shape.strides.plain.axis[a];
      }
      const Digits extent = digits_of(shape, block);
      if (cursor.digit[kAxes] >= extent.of[kAxes]) row.plain = -1;
      rows_at(shape, shared, chunk & 1)[k] = row;
      std::int32_t carry = 0;
#pragma unroll
      for (int place = 0; place < kAxes; ++place) {
        cursor.digit[place] += cursor.step[place] + carry;
        carry = cursor.digit[place] >= std::int32_t(extent.of[place]);
        if (carry) cursor.digit[place] -= std::int32_t(extent.of[place]);
      }
      cursor.digit[kAxes] += cursor.step[kAxes] + carry;
      cursors_at(shape, shared)[k] = cursor;
    }
  }

  // How threads walk an extent of the first index (lanes) and one of the second; both extents are powers of two.
  struct Walk {
    int first, first_step, second, second_step;
  };
  static CONVT_HOST_DEVICE Walk walk(int thread, int threads_log2, int extent_log2) {
    const int lanes_log2 = extent_log2 < threads_log2 ? extent_log2 : threads_log2;
    return {thread & ((1 << lanes_log2) - 1), 1 << lanes_log2, thread >> lanes_log2, 1 << (threads_log2 - lanes_log2)};
  }
  static CONVT_HOST_DEVICE Walk along_channels(const SimtShape& shape, int thread) {
    return walk(thread, threads_log2(shape), 2 + shape.channels_log2);
  }
  static CONVT_HOST_DEVICE Walk along_pixels(const SimtShape& shape, int thread) {
    return walk(thread, threads_log2(shape), 3 + shape.pixels_log2);
  }
  static CONVT_HOST_DEVICE Walk along_rows(const SimtShape& shape, int thread) {
    return walk(thread, threads_log2(shape), shape.slice_rows_log2 + shape.slices_log2);
  }

  // The operands of a chunk into its stage.
  static CONVT_HOST_DEVICE void load(const Params& params, int chunk, int thread, char* shared) {
    const SimtShape& shape = params.shape;
    const SimtBlock& block = *block_at(shared);
    const SimtRow* const rows = rows_at(shape, shared, chunk & 1);
    const SimtPixel* const pixels = pixels_at(shape, shared);
    T* const plain_stage = reinterpret_cast<T*>(shared + shape.header_bytes + (chunk & 1) * shape.stage_bytes);
    T* const gathered_stage = plain_stage + chunk_of(shape) * channel_pitch(shape);
    const int length = chunk_of(shape);

    const SimtStrides::Plain& strides = shape.strides.plain;
    const S* const plain =
        static_cast<const S*>(params.data.plain) + block.group * strides.group + block.channel * strides.channel;
    const auto copy_channel = [&](int m, int k, bool exists) {
      const std::int64_t offset = rows[k].plain;
      const bool valid = exists && offset >= 0;
      copy_element(plain_stage + k * channel_pitch(shape) + m, plain + (valid ? offset + m * strides.channel : 0),
                   valid);
    };
    if (!kForward && shape.plain_rows_fast) {
      const Walk deep = along_rows(shape, thread);
      for (int m = deep.second; m < tile_channels(shape); m += deep.second_step) {
        const bool exists = block.channel + m < shape.channels;
        for (int k = deep.first; k < length; k += deep.first_step) copy_channel(m, k, exists);
      }
    } else {
      const Walk along = along_channels(shape, thread);
      for (int m = along.first; m < tile_channels(shape); m += along.first_step) {
        const bool exists = block.channel + m < shape.channels;
        for (int k = along.second; k < length; k += along.second_step) copy_channel(m, k, exists);
      }
    }

    const S* const gathered = static_cast<const S*>(params.data.gathered) + block.group * shape.strides.gathered.group;
    const auto copy_pixel = [&](int p, int k, const SimtPixel& pixel) {
      const SimtRow& row = rows[k];
      bool valid = row.plain >= 0;
#pragma unroll
      for (int a = 0; a < kAxes; ++a) {
        valid = valid && pixel.q[a] - row.shift[a] < std::uint32_t(shape.axis[a].gathered);
      }
      copy_element(gathered_stage + k * pixel_pitch(shape) + p, gathered + (valid ? pixel.gathered + row.gathered : 0),
                   valid);
    };
    if (shape.gathered_rows_fast) {
      const Walk deep = along_rows(shape, thread);
      for (int p = deep.second; p < tile_pixels(shape); p += deep.second_step) {
        for (int k = deep.first; k < length; k += deep.first_step) copy_pixel(p, k, pixels[p]);
      }
    } else {
      const Walk wide = along_pixels(shape, thread);
      for (int p = wide.first; p < tile_pixels(shape); p += wide.first_step) {
        const SimtPixel pixel = pixels[p];
        for (int k = wide.second; k < length; k += wide.second_step) copy_pixel(p, k, pixel);
      }
    }
  }

  // A thread's place in the tile. A warp is 4 x 8 threads where both extents allow it.
  struct Corner {
    int channel, pixel, slice;       // in threads
  };
  static CONVT_HOST_DEVICE Corner corner_of(const SimtShape& shape, int thread) {
    const int m = shape.channels_log2, n = shape.pixels_log2;
    const int inner_n = n < 3 ? n : m < 2 && n > 3 ? (n < 5 - m ? n : 5 - m) : 3;
    const int inner_m = m < 5 - inner_n ? m : 5 - inner_n;
    Corner corner;
    corner.pixel = thread & ((1 << inner_n) - 1);
    thread >>= inner_n;
    corner.channel = thread & ((1 << inner_m) - 1);
    thread >>= inner_m;
    corner.pixel |= (thread & ((1 << (n - inner_n)) - 1)) << inner_n;
    thread >>= n - inner_n;
    corner.channel |= (thread & ((1 << (m - inner_m)) - 1)) << inner_m;
    corner.slice = thread >> (m - inner_m);
    return corner;
  }

  static CONVT_HOST_DEVICE void multiply(const SimtShape& shape, int chunk, int thread, const char* shared,
                                         Thread& state) {
    const Corner corner = corner_of(shape, thread);
    const T* const stage = reinterpret_cast<const T*>(shared + shape.header_bytes + (chunk & 1) * shape.stage_bytes);
    const int row = corner.slice << shape.slice_rows_log2;
    const T* plain = stage + row * channel_pitch(shape) + corner.channel * kVector;
    const T* gathered =
        stage + chunk_of(shape) * channel_pitch(shape) + row * pixel_pitch(shape) + corner.pixel * kVector;
    for (int k = 0; k < 1 << shape.slice_rows_log2; k += 4) {
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        T a[RM], b[RN];
#pragma unroll
        for (int i = 0; i < RM; i += kVector) {
          const auto piece = *reinterpret_cast<const SharedVector<T>*>(plain + (i << shape.channels_log2));
#pragma unroll
          for (int lane = 0; lane < kVector; ++lane) a[i + lane] = piece.lane[lane];
        }
#pragma unroll
        for (int i = 0; i < RN; i += kVector) {
          const auto piece = *reinterpret_cast<const SharedVector<T>*>(gathered + (i << shape.pixels_log2));
#pragma unroll
          for (int lane = 0; lane < kVector; ++lane) b[i + lane] = piece.lane[lane];
        }
#pragma unroll
        for (int m = 0; m < RM; ++m) {
#pragma unroll
          for (int n = 0; n < RN; ++n) state.sum[m][n] += a[m] * b[n];
        }
        plain += channel_pitch(shape);
        gathered += pixel_pitch(shape);
      }
    }
  }

  // What happens between two barriers: chunk + 1 is fetched, the rows of chunk + 2 are written, chunk is multiplied.
  static CONVT_HOST_DEVICE void advance(const Params& params, int chunk, int chunks, int thread, char* shared,
                                        Thread& state) {
    if (chunk + 1 < chunks) load(params, chunk + 1, thread, shared);
    if (chunk + 2 < chunks) write_row(params, chunk + 2, thread, shared);
    multiply(params.shape, chunk, thread, shared, state);
  }

  // --- after the last chunk ---

  // Slice by slice, with a barrier after each, into the result tile [channel][pixel] where the stages were.
  static CONVT_HOST_DEVICE void collect(const SimtShape& shape, int slice, int thread, char* shared,
                                        const Thread& state) {
    const Corner corner = corner_of(shape, thread);
    if (corner.slice != slice) return;
    T* const tile = reinterpret_cast<T*>(shared + shape.header_bytes);
#pragma unroll
    for (int m = 0; m < RM; ++m) {
      const int channel = (m / kVector << shape.channels_log2) * kVector + corner.channel * kVector + m % kVector;
#pragma unroll
      for (int i = 0; i < RN; i += kVector) {
        auto& piece = *reinterpret_cast<SharedVector<T>*>(tile + channel * pixel_pitch(shape) +
                                                          (i << shape.pixels_log2) + corner.pixel * kVector);
        SharedVector<T> sums;
        if (slice) sums = piece;
#pragma unroll
        for (int lane = 0; lane < kVector; ++lane) {
          sums.lane[lane] = slice ? sums.lane[lane] + state.sum[m][i + lane] : state.sum[m][i + lane];
        }
        piece = sums;
      }
    }
  }

  // Forward: the output that is `beyond` pixels behind the tile's pixel p along W; without its channel.
  static CONVT_HOST_DEVICE OutputPlace place_of(const SimtShape& shape, const SimtBlock& block, int p,
                                                std::int64_t beyond) {
    OutputPlace place{};
    std::int64_t rest = block.pixel + p;
    if (shape.outer_fastest) place.at[0] = simt_split(rest, shape.outer);
#pragma unroll
    for (int a = kAxes - 1; a >= 0; --a) {
      const std::int64_t q = block.axis[a].q_begin + simt_split(rest, block.axis[a].q_count);
      place.at[2 + a] = shape.axis[a].taps.stride * q + block.axis[a].phase - shape.axis[a].padding;
    }
    if (!shape.outer_fastest) place.at[0] = rest;
    place.at[1 + kAxes] += beyond;
    return place;
  }

  static CONVT_HOST_DEVICE void store(const Params& params, int thread, char* shared) {
    const SimtShape& shape = params.shape;
    const SimtBlock& block = *block_at(shared);
    const SimtPixel* const pixels = pixels_at(shape, shared);
    const T* const tile = reinterpret_cast<const T*>(shared + shape.header_bytes);
    const SimtBlock::PerAxis& w = block.axis[kAxes - 1];
    const SimtStrides::Result& strides = shape.strides.result;
    const std::int64_t left = shape.channels - block.channel;
    const int channels = left < tile_channels(shape) ? int(left) : tile_channels(shape);
    const Walk wide = along_pixels(shape, thread);
    const Walk deep = along_channels(shape, thread);
    const int m_begin = shape.result_channels_fast ? deep.first : wide.second;
    const int m_step = shape.result_channels_fast ? deep.first_step : wide.second_step;
    const int e_begin = shape.result_channels_fast ? deep.second : wide.first;
    const int e_step = shape.result_channels_fast ? deep.second_step : wide.first_step;
    const std::int64_t run = kForward ? w.run : 1, elements = tile_pixels(shape) * run;
    const std::int64_t corner = block.group * strides.group + block.channel * strides.channel +
                                (Setup::kSplits ? block.split * strides.split : 0);
    for (std::int64_t e = e_begin; e < elements; e += e_step) {
      const int p = int(run == 1 ? e : simt_divide(e, run));
      const std::int64_t t = e - p * run;   // 0: the phase itself, then the empty ones behind it
      const SimtPixel& pixel = pixels[p];
      if (!pixel.exists) continue;
      if (run != 1) {
        const std::int64_t q = w.q_begin + std::uint32_t(pixel.q[kAxes - 1] - std::uint32_t(w.q_begin));
        const SimtAxis& axis = shape.axis[kAxes - 1];
        const std::int64_t o = axis.taps.stride * q + w.phase + t - axis.padding;
        if (o < 0 || o >= axis.result) continue;
      }
      const std::int64_t to = corner + pixel.result + t * strides.axis[kAxes - 1];
      OutputPlace place{};
      if (kForward && params.program.count > 0) place = place_of(shape, block, p, t);
      for (int m = m_begin; m < channels; m += m_step) {
        T value = t == 0 ? tile[m * pixel_pitch(shape) + p] : T(0);
        if (Setup::kSplits && shape.splits > 1) {
          static_cast<T*>(params.data.result)[to + m * strides.channel] = value;
          continue;
        }
        if (kForward && params.data.bias) {
          const std::int64_t channel = block.group * shape.channels + block.channel + m;
          value += widen(read_global(static_cast<const S*>(params.data.bias) + channel * shape.strides.bias));
        }
        if (kForward && params.program.count > 0) {
          place.at[1] = block.group * shape.channels + block.channel + m;
          T mapped[1] = {value};
          apply_program<S>(params.program, mapped, 1, place, 1, 0);
          value = mapped[0];
        }
        static_cast<S*>(params.data.result)[to + m * strides.channel] = narrow_to<S>(value);
      }
    }
  }

#ifdef __CUDACC__
  __device__ void operator()(const Params& params) const {
    extern __shared__ __align__(16) char shared[];
    const int thread = int(threadIdx.x);
    const std::int64_t index = std::int64_t(blockIdx.y) * gridDim.x + blockIdx.x;
    Thread state;
    Setup::find_taps(params.shape, index, thread, shared);
    __syncthreads();
    Setup::find_grid(params.shape, thread, shared);
    __syncthreads();
    if (Setup::is_idle(params.shape, shared)) return;
    Setup::clip_taps(params.shape, thread, shared);
    __syncthreads();
    start(params, thread, shared, state);
    const int chunks = Setup::chunks_of(params.shape, shared);
    if (chunks > 0) write_row(params, 0, thread, shared);
    __syncthreads();
    if (chunks > 0) load(params, 0, thread, shared);
    if (chunks > 1) write_row(params, 1, thread, shared);
    for (int chunk = 0; chunk < chunks; ++chunk) {
      wait_copies();
      __syncthreads();
      advance(params, chunk, chunks, thread, shared, state);
    }
    for (int slice = 0; slice < 1 << params.shape.slices_log2; ++slice) {
      __syncthreads();
      collect(params.shape, slice, thread, shared, state);
    }
    __syncthreads();
    store(params, thread, shared);
  }
#endif
};

}  // namespace convt
