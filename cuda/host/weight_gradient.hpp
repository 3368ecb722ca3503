#pragma once

#include <utility>

#include "host/patch_loader.hpp"

// grad_weight: every (input channel, tap) x output channel entry is a dot product over the positions of a box. Lanes are
// positions, so any channel count fills them, and depthwise needs no case of its own.
namespace convt::host::CONVT_ISA {

template <class T>
struct DotLimits {
#if defined(CONVT_ISA_avx512)
  static constexpr int rows = 4, columns = 4;
#else
  static constexpr int rows = 4, columns = 2;
#endif
};

template <class T>
using DotFunction = void (*)(const T* const* rows, const T* columns, std::int64_t column_pitch, const Runs& runs,
                             T* sums);

// sums[row * columns + column], one entry per pair.
template <class T, int Rows, int Columns>
void dot_tile(const T* const* row_pointers, const T* columns, std::int64_t column_pitch, const Runs& runs, T* sums) {
  Vec<T> sum[Rows][Columns] = {};
  const T* a[Rows];
  for (int r = 0; r < Rows; ++r) a[r] = row_pointers[r];
  const auto step = [&](std::int64_t i, auto&& column) {
    Vec<T> b[Columns];
#pragma GCC unroll 8
    for (int c = 0; c < Columns; ++c) b[c] = column(columns + c * column_pitch + i);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Vec<T> x = load(a[r] + i);
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) sum[r][c] += x * b[c];
    }
  };
  for_each_run(runs, [&](std::int64_t begin) {
    const std::int64_t end = begin + runs.length;
    std::int64_t i = begin;
    for (; i + kLanes<T> <= end; i += kLanes<T>) step(i, [](const T* from) { return load(from); });
    // Behind a run comes the next one: its positions must not be counted twice.
    if (i < end) step(i, [&](const T* from) { return load_first(from, int(end - i)); });
  });
  constexpr int L = kLanes<T>;
#pragma GCC unroll 8
  for (int first = 0; first < Rows * Columns; first += L) {
    Vec<T> rows[L] = {};
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      if (first + i < Rows * Columns) rows[i] = sum[(first + i) / Columns][(first + i) % Columns];
    }
    alignas(64) T out[L];
    store(out, row_sums<T>(rows));
    for (int i = 0; i < L && first + i < Rows * Columns; ++i) sums[first + i] = out[i];
  }
}

template <class T>
DotFunction<T> dot_function(int rows, int columns) {
  using Limits = DotLimits<T>;
  static constexpr auto table = []<int... I>(std::integer_sequence<int, I...>) {
    struct {
      DotFunction<T> entry[sizeof...(I)];
    } functions{{dot_tile<T, I / Limits::columns + 1, I % Limits::columns + 1>...}};
    return functions;
  }(std::make_integer_sequence<int, Limits::rows * Limits::columns>{});
  return table.entry[(rows - 1) * Limits::columns + columns - 1];
}

// All (input channel, tap) x output channel products of one group and one box, added to `partial`.
template <class T>
void accumulate_box(const WeightGradientArgs& args, const Runs& runs, const T* input, std::int64_t in_channels,
                    const T* grad_output, std::int64_t out_channels, bool first, T* partial) {
  using Limits = DotLimits<T>;
  const std::int64_t input_pitch = args.input.plane_pitch;
  const std::int64_t column_pitch = args.grad_output.planes * args.grad_output.plane_pitch;
  for (std::int64_t plane = 0; plane < args.grad_output.planes; ++plane) {
    const WeightGradientTap* const taps = args.taps + args.plane_begin[plane];
    const std::int64_t tap_count = args.plane_begin[plane + 1] - args.plane_begin[plane];
    const std::int64_t rows = in_channels * tap_count;
    for (std::int64_t row = 0; row < rows; row += Limits::rows) {
      const int row_count = int(smaller(Limits::rows, rows - row));
      const T* pointers[Limits::rows];
      std::int64_t targets[Limits::rows];
      for (int r = 0; r < row_count; ++r) {
        const std::int64_t channel = (row + r) / tap_count;
        const WeightGradientTap& tap = taps[(row + r) % tap_count];
        pointers[r] = input + channel * input_pitch + tap.input_offset;
        targets[r] = channel * args.out_channels * args.tap_count + tap.filter_offset;
      }
      for (std::int64_t column = 0; column < out_channels; column += Limits::columns) {
        const int column_count = int(smaller(Limits::columns, out_channels - column));
        T sums[Limits::rows * Limits::columns];
        dot_function<T>(row_count, column_count)(
            pointers, grad_output + plane * args.grad_output.plane_pitch + column * column_pitch, column_pitch, runs,
            sums);
        for (int r = 0; r < row_count; ++r) {
          for (int c = 0; c < column_count; ++c) {
            T& to = partial[targets[r] + (column + c) * args.tap_count];
            to = first ? sums[r * column_count + c] : to + sums[r * column_count + c];
          }
        }
      }
    }
  }
}

// scratch: input patch [group_block * in_block][plane_pitch], grad_output patch [group_block * out_block][plane][plane_pitch]
template <class S>
void weight_gradient(const WeightGradientArgs& args, std::int64_t task, void* scratch) {
  using T = typename Accumulator<S>::type;
  const std::int64_t out_begin = digit(task, args.out_blocks) * args.out_block;
  const std::int64_t in_begin = digit(task, args.in_blocks) * args.in_block;
  const std::int64_t group_begin = digit(task, args.group_blocks) * args.group_block;
  const std::int64_t slice = task;
  const std::int64_t groups = smaller(args.group_block, args.groups - group_begin);
  const std::int64_t in_channels = smaller(args.in_block, args.in_channels - in_begin);
  const std::int64_t out_channels = smaller(args.out_block, args.out_channels - out_begin);
  const std::int64_t out_pitch = args.grad_output.planes * args.grad_output.plane_pitch;
  const std::int64_t boxes = box_count(args.grid);

  T* const input = static_cast<T*>(scratch);
  T* const grad_output = input + args.group_block * args.in_block * args.input.plane_pitch + kLanes<T>;
  T* const partial =
      static_cast<T*>(args.partial) + slice * args.groups * args.in_channels * args.out_channels * args.tap_count;
  const std::int64_t box_begin = boxes * slice / args.slices;
  for (std::int64_t index = box_begin; index < boxes * (slice + 1) / args.slices; ++index) {
    const Box box = box_at(args.grid, index);
    const Runs runs = runs_of(box, args.input.extent, args.grid.run_axis);
    // More than one group in a block implies whole groups, whose channels are neighbours.
    load_patch<S>(args.input, args.input.extent, box, args.input.extent, group_begin * args.in_channels + in_begin,
                  groups > 1 ? groups * args.in_channels : in_channels, input);
    load_patch<S>(args.grad_output, args.input.extent, box, box.extent, group_begin * args.out_channels + out_begin,
                  groups > 1 ? groups * args.out_channels : out_channels, grad_output);
    for (std::int64_t group = 0; group < groups; ++group) {
      accumulate_box(args, runs, input + group * args.in_channels * args.input.plane_pitch, in_channels,
                     grad_output + group * args.out_channels * out_pitch, out_channels, index == box_begin,
                     partial + (((group_begin + group) * args.in_channels + in_begin) * args.out_channels + out_begin) *
                                   args.tap_count);
    }
  }
}

// The definition for one input channel: only products that exist, so Inf and NaN stay where they belong. Row by row: the
// grid is the input's, grad_output is read at stride * i + residue.
template <class S>
void weight_gradient_exact(const WeightGradientArgs& args, std::int64_t in_channel) {
  using T = typename Accumulator<S>::type;
  const TensorView& from = args.input.source;
  const TensorView& grad = args.grad_output.source;
  const std::int64_t group = in_channel / args.in_channels;
  T* const partial = static_cast<T*>(args.partial) + in_channel * args.out_channels * args.tap_count;
  for (std::int64_t plane = 0; plane < args.grad_output.planes; ++plane) {
    const std::int64_t (&residue)[3] = args.grad_output.residue[plane];
    for (std::int64_t t = args.plane_begin[plane]; t < args.plane_begin[plane + 1]; ++t) {
      // The patch offset of a tap, taken apart: input pixel = q + low + offset.
      std::int64_t rest = args.taps[t].input_offset;
      std::int64_t offset[3];
      for (int axis = 2; axis >= 0; --axis) offset[axis] = digit(rest, args.input.extent[axis]) + args.input.low[axis];
      for (std::int64_t m = 0; m < args.out_channels; ++m) {
        T sum = 0;
        for (std::int64_t image = 0; image < from.sizes[0]; ++image) {
          const S* const x = static_cast<const S*>(from.data) + image * from.strides[0] + in_channel * from.strides[1];
          const S* const g = static_cast<const S*>(grad.data) + image * grad.strides[0] +
                             (group * args.out_channels + m) * grad.strides[1];
          std::int64_t begin[3], end[3];
          for (int axis = 0; axis < 3; ++axis) {
            begin[axis] = larger(0, -offset[axis]);
            const std::int64_t room = grad.sizes[axis + 2] - residue[axis];
            end[axis] = smaller(from.sizes[axis + 2] - offset[axis],
                                room > 0 ? divide_up(room, args.grad_output.stride[axis]) : 0);
          }
          for (std::int64_t d = begin[0]; d < end[0]; ++d) {
            for (std::int64_t h = begin[1]; h < end[1]; ++h) {
              const S* const xr = x + (d + offset[0]) * from.strides[2] + (h + offset[1]) * from.strides[3] +
                                  offset[2] * from.strides[4];
              const S* const gr = g + (args.grad_output.stride[0] * d + residue[0]) * grad.strides[2] +
                                  (args.grad_output.stride[1] * h + residue[1]) * grad.strides[3] +
                                  residue[2] * grad.strides[4];
              const std::int64_t step = args.grad_output.stride[2] * grad.strides[4];
              for (std::int64_t w = begin[2]; w < end[2]; ++w) {
                sum += T(widen(xr[w * from.strides[4]])) * T(widen(gr[w * step]));
              }
            }
          }
        }
        partial[m * args.tap_count + args.taps[t].filter_offset] = sum;
      }
    }
  }
}

// Sums the slices of one input channel in order and writes it. Returns whether no result is NaN.
template <class S>
bool convert(const ConvertArgs& args, std::int64_t row) {
  using T = typename Accumulator<S>::type;
  const TensorView& to = args.destination;
  const std::int64_t taps = to.sizes[2] * to.sizes[3] * to.sizes[4];
  const T* from = static_cast<const T*>(args.partial) + row * to.sizes[1] * taps;
  bool ordered = true;
  for (std::int64_t m = 0; m < to.sizes[1]; ++m) {
    for (std::int64_t d = 0; d < to.sizes[2]; ++d) {
      for (std::int64_t h = 0; h < to.sizes[3]; ++h) {
        S* const out =
            static_cast<S*>(to.data) + row * to.strides[0] + m * to.strides[1] + d * to.strides[2] + h * to.strides[3];
        for (std::int64_t w = 0; w < to.sizes[4]; ++w, ++from) {
          T sum = *from;
          for (std::int64_t slice = 1; slice < args.slices; ++slice) sum += from[slice * args.slice_pitch];
          ordered = ordered && sum == sum;
          out[w * to.strides[4]] = narrow<S, T>(sum);
        }
      }
    }
  }
  return ordered;
}

// Rows are summed in the accumulator type, rows' sums in double: long sums stay accurate.
template <class S>
void channel_sum(const ChannelSumArgs& args, std::int64_t channel) {
  using T = typename Accumulator<S>::type;
  constexpr int L = kLanes<T>;
  const TensorView& from = args.source;
  double total = 0;
  for (std::int64_t image = 0; image < from.sizes[0]; ++image) {
    for (std::int64_t d = 0; d < from.sizes[2]; ++d) {
      for (std::int64_t h = 0; h < from.sizes[3]; ++h) {
        const S* const row = static_cast<const S*>(from.data) + image * from.strides[0] + channel * from.strides[1] +
                             d * from.strides[2] + h * from.strides[3];
        T lanes[4 * L] = {};
        std::int64_t w = 0;
        if (from.strides[4] == 1) {
          for (; w + 4 * L <= from.sizes[4]; w += 4 * L) {
            for (int i = 0; i < 4 * L; ++i) lanes[i] += T(widen(row[w + i]));
          }
        }
        for (int i = 0; w < from.sizes[4]; ++w, i = (i + 1) % (4 * L)) lanes[i] += T(widen(row[w * from.strides[4]]));
        double sum = 0;
        for (int i = 0; i < 4 * L; ++i) sum += lanes[i];
        total += sum;
      }
    }
  }
  static_cast<S*>(args.destination.data)[channel * args.destination.strides[1]] = narrow<S, T>(T(total));
}

}  // namespace convt::host::CONVT_ISA
