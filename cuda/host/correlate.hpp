#pragma once

#include <utility>

#include "host/epilogue.hpp"
#include "host/patch_loader.hpp"

// Forward and grad_input: a stride-1 product on the q-grid whose inner loop is a register tile of destination channels
// by consecutive positions. Stride lives in the loader (source planes) and in the store (destination phases).
namespace convt::host::CONVT_ISA {

// Register tile: rows of destination channels by vectors of positions, as many as the registers hold; few rows leave room
// for more vectors, which hide the latency of a multiply-add.
template <class T>
struct TileLimits {
#if defined(CONVT_ISA_avx512)
  static constexpr int rows = 8, vectors = 6, registers = 24;
#else
  static constexpr int rows = 4, vectors = 6, registers = 12;
#endif
  static constexpr int vectors_for(std::int64_t rows) {
    return rows * vectors <= registers ? vectors : rows * vectors / 2 <= registers ? vectors / 2 : vectors / 3;
  }
};

template <class T>
using TileFunction = void (*)(const T* filter, const T* patch, const CorrelationTap* taps, std::int64_t tap_count,
                              std::int64_t channels, std::int64_t channel_pitch, T* accumulators,
                              std::int64_t accumulator_pitch);

template <class T, int Rows, int Vectors>
void multiply_tile(const T* filter, const T* patch, const CorrelationTap* taps, std::int64_t tap_count,
                   std::int64_t channels, std::int64_t channel_pitch, T* accumulators, std::int64_t accumulator_pitch) {
  Vec<T> sum[Rows][Vectors] = {};
  for (std::int64_t tap = 0; tap < tap_count; ++tap) {
    const T* from = patch + taps[tap].patch_offset;
    for (std::int64_t channel = 0; channel < channels; ++channel) {
      Vec<T> x[Vectors];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) x[v] = load(from + v * kLanes<T>);
#pragma GCC unroll 8
      for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) sum[row][v] += filter[row] * x[v];
      }
      filter += Rows;
      from += channel_pitch;
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) store(accumulators + row * accumulator_pitch + v * kLanes<T>, sum[row][v]);
  }
}

template <class T, int Rows, int Vectors>
constexpr TileFunction<T> tile_or_null() {
  if constexpr (Vectors <= TileLimits<T>::vectors_for(Rows)) {
    return multiply_tile<T, Rows, Vectors>;
  } else {
    return nullptr;
  }
}

template <class T>
TileFunction<T> tile_function(std::int64_t rows, std::int64_t vectors) {
  using Limits = TileLimits<T>;
  static constexpr auto table = []<int... I>(std::integer_sequence<int, I...>) {
    struct {
      TileFunction<T> entry[sizeof...(I)];
    } functions{{tile_or_null<T, I / Limits::vectors + 1, I % Limits::vectors + 1>()...}};
    return functions;
  }(std::make_integer_sequence<int, Limits::rows * Limits::vectors>{});
  return table.entry[(rows - 1) * Limits::vectors + vectors - 1];
}

template <class T>
void multiply_runs(const Runs& runs, const T* filter, std::int64_t rows, const T* patch, const CorrelationTap* taps,
                   std::int64_t tap_count, std::int64_t channels, std::int64_t channel_pitch, T* accumulators,
                   std::int64_t accumulator_pitch) {
  // Vectors are shared out evenly, so that no tile is left with one.
  const std::int64_t vectors = divide_up(runs.length, kLanes<T>);
  const std::int64_t tiles = divide_up(vectors, TileLimits<T>::vectors_for(rows));
  const std::int64_t share = vectors / tiles, larger_tiles = vectors % tiles;
  const TileFunction<T> larger_tile = larger_tiles ? tile_function<T>(rows, share + 1) : nullptr;
  const TileFunction<T> tile = tile_function<T>(rows, share);
  for_each_run(runs, [&](std::int64_t position) {
    for (std::int64_t i = 0; i < tiles; ++i) {
      (i < larger_tiles ? larger_tile : tile)(filter, patch + position, taps, tap_count, channels, channel_pitch,
                                              accumulators + position, accumulator_pitch);
      position += (i < larger_tiles ? share + 1 : share) * kLanes<T>;
    }
  });
}

// One panel's filter in consumption order. Returns whether all of it is finite: zero-filled halo pixels may be multiplied
// by it only then.
template <class S>
bool pack_filter(const CorrelationArgs& args, std::int64_t group, std::int64_t panel) {
  using T = typename Accumulator<S>::type;
  const std::int64_t row_begin = panel * args.panel_rows;
  const std::int64_t rows = smaller(args.panel_rows, args.destination_channels - row_begin);
  const std::int64_t channels = args.source_channels;
  T* const packed =
      static_cast<T*>(args.packed_filter) + (group * args.destination_channels + row_begin) * args.tap_count * channels;
  const S* const filter = static_cast<const S*>(args.filter) + group * args.filter_group_stride;
  T zero = 0;
  for (std::int64_t channel = 0; channel < channels; ++channel) {
    for (std::int64_t row = 0; row < rows; ++row) {
      const S* const from = filter + channel * args.filter_channel_stride + (row_begin + row) * args.filter_row_stride;
      T* const to = packed + channel * rows + row;
      for (std::int64_t tap = 0; tap < args.tap_count; ++tap) {
        const T value = widen(from[args.taps[tap].filter_offset]);
        to[tap * channels * rows] = value;
        zero += value * T(0);
      }
    }
  }
  return zero == 0;
}

// The bias of all channels in the accumulator type, a vector of zeros behind it.
template <class S>
void widen_bias(const TensorView& bias, void* to) {
  using T = typename Accumulator<S>::type;
  T* const out = static_cast<T*>(to);
  for (std::int64_t i = 0; i < bias.sizes[1]; ++i)
    out[i] = widen(static_cast<const S*>(bias.data)[i * bias.strides[1]]);
  for (std::int64_t i = 0; i < kLanes<T>; ++i) out[bias.sizes[1] + i] = 0;
}

inline bool any_of(const bool* reached, std::int64_t phases) {
  for (std::int64_t phase = 0; phase < phases; ++phase) {
    if (reached[phase]) return true;
  }
  return false;
}

// Depth-to-space of one destination row: pixel stride * q + phase takes position q of its phase, phase_pitch apart.
// `any`: some phase has a tap. Streaming leaves the caches alone: for results far larger than they are, which it spares
// the read that a store implies.
template <bool Streaming, class T>
inline void interleave(T* __restrict to, const T* __restrict from, std::int64_t phase_pitch, const bool* reached,
                       bool any, std::int64_t stride, std::int64_t pixels, T bias) {
  constexpr int L = kLanes<T>;
  const auto put = [](T* out, Vec<T> value) {
    if constexpr (Streaming) {
      stream(out, value);
    } else {
      store(out, value);
    }
  };
  // Elements before the first aligned one.
  const std::int64_t peel =
      Streaming ? std::int64_t(-reinterpret_cast<std::uintptr_t>(to) % kVectorBytes / sizeof(T)) : 0;
  std::int64_t i = 0;
  if (!any) {
    for (; i < smaller(peel, pixels); ++i) to[i] = bias;
    for (; i + L <= pixels; i += L) put(to + i, Vec<T>{} + bias);
    for (; i < pixels; ++i) to[i] = bias;
  } else if (stride == 1) {
    for (; i < smaller(peel, pixels); ++i) to[i] = from[i] + bias;
    for (; i + L <= pixels; i += L) put(to + i, load(from + i) + bias);
    for (; i < pixels; ++i) to[i] = from[i] + bias;
  } else if (stride == 2 && peel % 2 == 0) {
    const auto pixel = [&](std::int64_t phase) { return reached[phase] ? from[phase * phase_pitch + i] + bias : bias; };
    const auto pixels_of = [&](std::int64_t phase) {
      return reached[phase] ? load(from + phase * phase_pitch + i) + bias : Vec<T>{} + bias;
    };
    const auto pair = [&] {
      to[2 * i] = pixel(0);
      to[2 * i + 1] = pixel(1);
    };
    for (; 2 * i < smaller(peel, pixels - 1); ++i) pair();
    for (; 2 * (i + L) <= pixels; i += L) {
      Vec<T> even = pixels_of(0), odd = pixels_of(1);
      interleave_lanes<T>(even, odd, LaneSequence<T>{});
      put(to + 2 * i, even);
      put(to + 2 * i + L, odd);
    }
    for (; 2 * i + 1 < pixels; ++i) pair();
    if (pixels & 1) to[pixels - 1] = pixel(0);
  } else {
    for (std::int64_t phase = 0; phase < smaller(stride, pixels); ++phase) {
      const T* __restrict source = from + phase * phase_pitch;
      if (reached[phase]) {
        for (std::int64_t at = phase; at < pixels; at += stride) to[at] = *source++ + bias;
      } else {
        for (std::int64_t at = phase; at < pixels; at += stride) to[at] = bias;
      }
    }
  }
}

// What a program does is out of line: the code without one stays as it is.
template <class S, class T>
[[gnu::noinline]] void store_square(const Program& program, S* to, std::int64_t pixel_stride,
                                    const Vec<T> (&rows)[kLanes<T>], Vec<T> bias, const PieceAt& piece) {
  constexpr int L = kLanes<T>;
  alignas(64) T square[L * L];
  for (int i = 0; i < piece.rows; ++i) store(square + i * L, rows[i] + bias);
  apply_program<S>(program, square, piece, L);
  for (int i = 0; i < piece.rows; ++i) narrow_row(to + i * pixel_stride, square + i * L, piece.count);
}

// Channels are neighbours in memory: one phase's row goes out in vector-sized squares.
template <class S, class T>
void scatter_channels(S* to, std::int64_t pixel_stride, const T* from, std::int64_t channel_pitch, std::int64_t pixels,
                      std::int64_t channels, const T* bias, const Program* program, PieceAt piece) {
  constexpr int L = kLanes<T>;
  const std::int64_t first_channel = piece.at[1], first_pixel = piece.at[4];
  for (std::int64_t channel = 0; channel < channels; channel += L) {
    const int count = int(smaller(L, channels - channel));
    const Vec<T> added = bias ? load(bias + channel) : Vec<T>{};
    for (std::int64_t pixel = 0; pixel < pixels; pixel += L) {
      Vec<T> rows[L] = {};
      if (from) {
        for (int i = 0; i < count; ++i) rows[i] = load(from + (channel + i) * channel_pitch + pixel);
        transpose<T>(rows);
      }
      const int pixel_count = int(smaller(L, pixels - pixel));
      if (program) {
        piece.at[1] = first_channel + channel;
        piece.at[4] = first_pixel + pixel * piece.row_step;
        piece.rows = pixel_count;
        piece.count = count;
        store_square<S, T>(*program, to + pixel * pixel_stride + channel, pixel_stride, rows, added, piece);
        continue;
      }
      for (int i = 0; i < pixel_count; ++i) {
        alignas(64) T row[L];
        store(row, rows[i] + added);
        narrow_row(to + (pixel + i) * pixel_stride + channel, row, count);
      }
    }
  }
}

template <class S, class T>
[[gnu::noinline]] void interleave_program(const CorrelationArgs& args, S* to, T* row, const T* from,
                                          std::int64_t phase_pitch, const bool* reached, bool any, T bias,
                                          const PieceAt& piece) {
  const std::int64_t stride = args.destination.strides[4];
  if constexpr (sizeof(S) == sizeof(T)) {
    if (stride == 1 && !args.streaming && piece.count % kLanes<T> == 0) row = to;
  }
  interleave<false>(row, from, phase_pitch, reached, any, args.destination_stride[2], piece.count, bias);
  store_program<S>(*args.program, to, stride, row, piece, args.streaming);
}

// Where the accumulators of a block of channels for one (D, H) phase are, and what they become.
template <class T>
struct Block {
  std::int64_t channel, rows;
  const T* accumulators;            // [W phase][row][position]
  const bool* reached;              // [W phase]: has any tap
};

// A destination row through a program, in place or from a buffer, where what follows it up to a vector is overwritten.
template <class S, class T>
[[gnu::noinline]] void store_program(const Program& program, S* to, std::int64_t stride, T* row, PieceAt piece,
                                     bool streaming) {
  const std::int64_t pixels = piece.count, first = piece.at[4];
  for (std::int64_t begin = 0; begin < pixels; begin += kPiece) {
    piece.at[4] = first + begin;
    piece.count = smaller(kPiece, pixels - begin);
    apply_program<S>(program, row + begin, piece, divide_up(piece.count, kLanes<T>) * kLanes<T>);
  }
  if (stride != 1) {
    for (std::int64_t i = 0; i < pixels; ++i) to[i * stride] = narrow<S, T>(row[i]);
    return;
  }
  if constexpr (sizeof(S) == sizeof(T)) {
    if (row == to) return;
    if (streaming) {
      const bool reached = true;
      return interleave<true>(to, row, 0, &reached, true, 1, pixels, T(0));
    }
  }
  narrow_row(to, row, pixels);
}

template <class S, class T>
void store_block(const CorrelationArgs& args, const Box& box, const Block<T>& block, std::int64_t phase_d,
                 std::int64_t phase_h, T* row_buffer) {
  // By value: stores through vectors may alias anything, and every row would load these again.
  const TensorView to = args.destination;
  const std::int64_t stride[3] = {args.destination_stride[0], args.destination_stride[1], args.destination_stride[2]};
  const std::int64_t layout[3] = {args.patch.extent[0], args.patch.extent[1], args.patch.extent[2]};
  const std::int64_t pitch = args.accumulator_pitch, phase_pitch = block.rows * pitch;
  const std::int64_t w_begin = stride[2] * box.begin[2];
  const std::int64_t pixels = smaller(stride[2] * box.extent[2], to.sizes[4] - w_begin);
  const T* const bias = args.bias ? static_cast<const T*>(args.bias) + block.channel : nullptr;
  const bool by_channel = to.strides[1] == 1 && to.strides[4] != 1 && block.rows > 1;
  const bool streaming = args.streaming;
  const bool any = any_of(block.reached, stride[2]);
  const std::int64_t d_end = smaller(box.extent[0], divide_up(to.sizes[2] - phase_d, stride[0]) - box.begin[0]);
  const std::int64_t h_end = smaller(box.extent[1], divide_up(to.sizes[3] - phase_h, stride[1]) - box.begin[1]);
  S* const first = static_cast<S*>(to.data) + box.image * to.strides[0] + block.channel * to.strides[1] +
                   (stride[0] * box.begin[0] + phase_d) * to.strides[2] +
                   (stride[1] * box.begin[1] + phase_h) * to.strides[3] + w_begin * to.strides[4];
  for (std::int64_t image = 0; image < box.images; ++image) {
    for (std::int64_t d = 0; d < d_end; ++d) {
      const T* from = block.accumulators + (image * layout[0] + d) * layout[1] * layout[2];
      S* row = first + image * to.strides[0] + d * stride[0] * to.strides[2];
      for (std::int64_t h = 0; h < h_end; ++h, from += layout[2], row += stride[1] * to.strides[3]) {
        const std::int64_t n = box.image + image, out_d = stride[0] * (box.begin[0] + d) + phase_d,
                           out_h = stride[1] * (box.begin[1] + h) + phase_h;
        if (by_channel) {
          for (std::int64_t w = 0; w < smaller(stride[2], pixels); ++w) {
            scatter_channels(
                row + w * to.strides[4], stride[2] * to.strides[4], block.reached[w] ? from + w * phase_pitch : nullptr,
                pitch, divide_up(pixels - w, stride[2]), block.rows, bias, args.program,
                {{n, block.channel, out_d, out_h, w_begin + w}, 4, stride[2], 1, 0, 0, 4, kLanes<T> * stride[2]});
          }
          continue;
        }
        for (std::int64_t r = 0; r < block.rows; ++r) {
          const T* const source = from + r * pitch;
          S* const out = row + r * to.strides[1];
          const T added = bias ? bias[r] : T(0);
          if (args.program) {
            interleave_program<S>(args, out, row_buffer, source, phase_pitch, block.reached, any, added,
                                  {{n, block.channel + r, out_d, out_h, w_begin}, 0, 0, 4, 1, pixels, 3, stride[1]});
            continue;
          }
          if constexpr (sizeof(S) == sizeof(T)) {
            if (to.strides[4] == 1) {
              const bool aligned = reinterpret_cast<std::uintptr_t>(out) % kVectorBytes == 0;
              if (streaming && (aligned || pixels >= 8 * kLanes<T>)) {
                interleave<true>(out, source, phase_pitch, block.reached, any, stride[2], pixels, added);
              } else {
                interleave<false>(out, source, phase_pitch, block.reached, any, stride[2], pixels, added);
              }
              continue;
            }
          }
          interleave<false>(row_buffer, source, phase_pitch, block.reached, any, stride[2], pixels, added);
          if (to.strides[4] == 1) {
            narrow_row(out, row_buffer, pixels);
          } else {
            for (std::int64_t i = 0; i < pixels; ++i) out[i * to.strides[4]] = narrow<S, T>(row_buffer[i]);
          }
        }
      }
    }
  }
}

// scratch: patch [group_block * source_channels][plane][plane_pitch], accumulators [W phase][block row][accumulator_pitch],
// a destination row and a vector, and a flag per W phase.
template <class S>
void correlate(const CorrelationArgs& args, std::int64_t task, void* scratch) {
  using T = typename Accumulator<S>::type;
  const std::int64_t split = digit(task, args.panel_splits);
  const std::int64_t group_begin = digit(task, args.group_blocks) * args.group_block;
  const std::int64_t groups = smaller(args.group_block, args.groups - group_begin);
  const Box box = box_at(args.grid, task);
  const Runs runs = runs_of(box, args.patch.extent, args.grid.run_axis);
  const std::int64_t (&layout)[3] = args.patch.extent;
  const std::int64_t w_phases = args.destination_stride[2];
  const std::int64_t channel_pitch = args.patch.planes * args.patch.plane_pitch;

  T* const patch = static_cast<T*>(scratch);
  T* const accumulators = patch + args.group_block * args.source_channels * channel_pitch + kLanes<T>;
  T* const row_buffer = accumulators + w_phases * args.block_rows * args.accumulator_pitch;
  bool* const reached = reinterpret_cast<bool*>(row_buffer + w_phases * args.grid.box[2] + kLanes<T>);

  load_patch<S>(args.patch, layout, box, layout, group_begin * args.source_channels, groups * args.source_channels,
                patch);
  // Several groups in a block imply that a block is all channels of each.
  const std::int64_t blocks = divide_up(args.panels, args.block_panels);
  for (std::int64_t b = blocks * split / args.panel_splits; b < blocks * (split + 1) / args.panel_splits; ++b) {
    const std::int64_t row_begin = b * args.block_panels * args.panel_rows;
    const std::int64_t rows = smaller(args.block_panels * args.panel_rows, args.destination_channels - row_begin);
    const Block<T> block{group_begin * args.destination_channels + row_begin, groups * rows, accumulators, reached};
    for (std::int64_t outer = 0; outer < args.destination_stride[0] * args.destination_stride[1]; ++outer) {
      for (std::int64_t w = 0; w < w_phases; ++w) {
        const std::int64_t begin = args.phase_begin[outer * w_phases + w];
        const std::int64_t taps = args.phase_begin[outer * w_phases + w + 1] - begin;
        reached[w] = taps > 0;
        if (!taps) continue;
        for (std::int64_t group = 0; group < groups; ++group) {
          const T* const filter =
              static_cast<const T*>(args.packed_filter) +
              ((group_begin + group) * args.destination_channels + row_begin) * args.tap_count * args.source_channels;
          for (std::int64_t row = 0; row < rows; row += args.panel_rows) {
            const std::int64_t panel_rows = smaller(args.panel_rows, rows - row);
            multiply_runs(runs, filter + (row * args.tap_count + begin * panel_rows) * args.source_channels, panel_rows,
                          patch + group * args.source_channels * channel_pitch, args.taps + begin, taps,
                          args.source_channels, channel_pitch,
                          accumulators + ((w * groups + group) * rows + row) * args.accumulator_pitch,
                          args.accumulator_pitch);
          }
        }
      }
      store_block<S>(args, box, block, outer / args.destination_stride[1], outer % args.destination_stride[1],
                     row_buffer);
    }
  }
  if (args.streaming) finish_streams();
}

// The definition, pixel by pixel: for tiny problems, and for filters that hold Inf or NaN, where a product with a
// zero-filled pixel would be NaN although no such product exists.
template <class S>
void correlate_exact(const CorrelationArgs& args, std::int64_t image, std::int64_t channel) {
  using T = typename Accumulator<S>::type;
  const TensorView& from = args.patch.source;
  const TensorView& to = args.destination;
  const std::int64_t group = channel / args.destination_channels;
  const S* const source =
      static_cast<const S*>(from.data) + image * from.strides[0] + group * args.source_channels * from.strides[1];
  const S* const filter = static_cast<const S*>(args.filter) + group * args.filter_group_stride +
                          (channel % args.destination_channels) * args.filter_row_stride;
  S* const destination = static_cast<S*>(to.data) + image * to.strides[0] + channel * to.strides[1];
  const std::int64_t* const stride = args.destination_stride;
  alignas(64) T row[kPiece];
  for (std::int64_t d = 0; d < to.sizes[2]; ++d) {
    for (std::int64_t h = 0; h < to.sizes[3]; ++h) {
      S* const line = destination + d * to.strides[2] + h * to.strides[3];
      const std::int64_t outer = (d % stride[0] * stride[1] + h % stride[1]) * stride[2];
      for (std::int64_t w = 0; w < to.sizes[4]; ++w) {
        const std::int64_t q[3] = {d / stride[0], h / stride[1], w / stride[2]};
        T sum = 0;
        for (std::int64_t tap = args.phase_begin[outer + w % stride[2]];
             tap < args.phase_begin[outer + w % stride[2] + 1]; ++tap) {
          const CorrelationTap& t = args.taps[tap];
          bool inside = true;
          std::int64_t offset = 0;
          for (int axis = 0; axis < 3; ++axis) {
            const std::int64_t pixel = args.patch.stride[axis] * (q[axis] + t.offset[axis]) + t.residue[axis];
            inside = inside && pixel >= 0 && pixel < from.sizes[axis + 2];
            offset += pixel * from.strides[axis + 2];
          }
          if (!inside) continue;
          for (std::int64_t k = 0; k < args.source_channels; ++k) {
            sum += T(widen(filter[k * args.filter_channel_stride + t.filter_offset])) *
                   T(widen(source[k * from.strides[1] + offset]));
          }
        }
        if (args.bias) sum += static_cast<const T*>(args.bias)[channel];
        if (!args.program) {
          line[w * to.strides[4]] = narrow<S, T>(sum);
          continue;
        }
        const std::int64_t at = w % kPiece;
        row[at] = sum;
        if (at + 1 < kPiece && w + 1 < to.sizes[4]) continue;
        store_program<S>(*args.program, line + (w - at) * to.strides[4], to.strides[4], row,
                         {{image, channel, d, h, w - at}, 0, 0, 4, 1, at + 1, 0, 0}, false);
      }
    }
  }
}

}  // namespace convt::host::CONVT_ISA
