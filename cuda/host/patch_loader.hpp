#pragma once

#include "host/grid.hpp"
#include "host/simd.hpp"

namespace convt::host::CONVT_ISA {

template <class T>
inline void fill(T* to, std::int64_t count, T value) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = value;
}

template <class S, class T>
inline Vec<T> load_widened(const S* from) {
  if constexpr (sizeof(S) == sizeof(T)) {
    return load(from);
  } else {
    alignas(64) T row[kLanes<T>];
    widen_row(row, from, kLanes<T>);
    return load(row);
  }
}

// Channels are neighbours in memory: transposed in vector-sized squares.
template <class S, class T>
inline void gather_channels(T* to, std::int64_t plane_stride, const S* from, std::int64_t pixel_stride,
                            std::int64_t pixels, std::int64_t channels) {
  constexpr int L = kLanes<T>;
  std::int64_t pixel = 0;
  for (; pixel + L <= pixels; pixel += L) {
    std::int64_t channel = 0;
    for (; channel + L <= channels; channel += L) {
      Vec<T> rows[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) rows[i] = load_widened<S, T>(from + (pixel + i) * pixel_stride + channel);
      transpose<T>(rows);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) store(to + (channel + i) * plane_stride + pixel, rows[i]);
    }
    for (; channel < channels; ++channel) {
      for (int i = 0; i < L; ++i)
        to[channel * plane_stride + pixel + i] = widen(from[(pixel + i) * pixel_stride + channel]);
    }
  }
  for (; pixel < pixels; ++pixel) {
    for (std::int64_t channel = 0; channel < channels; ++channel) {
      to[channel * plane_stride + pixel] = widen(from[pixel * pixel_stride + channel]);
    }
  }
}

// `before` and `behind`: elements of the source row before from[0] and after the last pixel, which vectors may read.
template <class S, class T>
inline void gather_row(T* to, const S* from, std::int64_t stride, std::int64_t pixels, std::int64_t before,
                       std::int64_t behind) {
  if (stride == 1) {
    widen_row(to, from, pixels);
    return;
  }
  std::int64_t i = 0;
  if constexpr (sizeof(S) == sizeof(T)) {
    if (stride == 2 && (before > 0 || behind > 0)) {
      for (; i + kLanes<T> <= pixels; i += kLanes<T>) {
        store(to + i, behind > 0 ? load_alternate<T, 0>(from + 2 * i, LaneSequence<T>{})
                                 : load_alternate<T, 1>(from + 2 * i - 1, LaneSequence<T>{}));
      }
    }
  }
  for (; i < pixels; ++i) to[i] = widen(from[stride * i]);
}

// Patch pixels of an axis that lie inside the source: stride * (origin + x) + residue in [0, size).
struct Inside {
  std::int64_t begin, end;
};

inline Inside inside(std::int64_t origin, std::int64_t stride, std::int64_t residue, std::int64_t size,
                     std::int64_t extent) {
  const std::int64_t first = stride * origin + residue;
  const std::int64_t end = first < size ? smaller(extent, divide_up(size - first, stride)) : 0;
  return {smaller(first < 0 ? divide_up(-first, stride) : 0, end), end};
}

// Zeros for a few pixels, by a vector that may run past them: what follows is written later.
template <class T>
inline void pad(T* to, std::int64_t count) {
  if (count > kLanes<T>) {
    fill(to, count, T(0));
  } else if (count > 0) {
    store(to, Vec<T>{});
  }
}

// Fills patch[channel][plane][image][d][h][w] for the box. Every element of every plane is written, in ascending order:
// runs read across rows, and vectors past the last one. `extent` clips the box (a gradient's sum must not see a
// neighbour's pixels); positions are laid out at the pitches of `layout`.
template <class S, class T>
inline void load_patch(const PatchArgs& args, const std::int64_t (&layout)[3], const Box& box,
                       const std::int64_t (&extent)[3], std::int64_t channel_begin, std::int64_t channels, T* patch) {
  const TensorView& source = args.source;
  const std::int64_t slab = layout[1] * layout[2], used = box.images * layout[0] * slab;
  const bool by_channel = source.strides[1] == 1 && source.strides[4] != 1 && channels >= kLanes<T>;
  const std::int64_t channel_step = by_channel ? channels : 1;
  const std::int64_t channel_pitch = args.planes * args.plane_pitch;
  const std::int64_t pixel_stride = args.stride[2] * source.strides[4];
  for (std::int64_t plane = 0; plane < args.planes; ++plane) {
    Inside in[3];
    std::int64_t first[3];   // source coordinate of patch pixel 0
    for (int axis = 0; axis < 3; ++axis) {
      const std::int64_t origin = box.begin[axis] + args.low[axis];
      first[axis] = args.stride[axis] * origin + args.residue[plane][axis];
      in[axis] = inside(origin, args.stride[axis], args.residue[plane][axis], source.sizes[axis + 2], extent[axis]);
    }
    const std::int64_t pixels = in[2].end - in[2].begin, w = first[2] + args.stride[2] * in[2].begin;
    // Neighbours in the row; with another pixel stride than 1 they are not the next elements.
    const std::int64_t before = source.strides[4] == 1 ? w : 0;
    const std::int64_t behind = source.strides[4] == 1 ? source.sizes[4] - 1 - w - args.stride[2] * (pixels - 1) : 0;
    for (std::int64_t channel = 0; channel < channels; channel += channel_step) {
      T* const to = patch + channel * channel_pitch + plane * args.plane_pitch;
      if (by_channel) {
        for (std::int64_t c = 0; c < channels; ++c) fill(to + c * channel_pitch, args.plane_pitch, T(0));
      }
      for (std::int64_t image = 0; image < box.images; ++image) {
        const S* const from = static_cast<const S*>(source.data) + (box.image + image) * source.strides[0] +
                              (channel_begin + channel) * source.strides[1] + w * source.strides[4];
        for (std::int64_t d = 0; d < layout[0]; ++d) {
          T* const slab_to = to + (image * layout[0] + d) * slab;
          const bool empty = d < in[0].begin || d >= in[0].end || pixels == 0;
          const std::int64_t h_begin = empty ? layout[1] : in[1].begin, h_end = empty ? layout[1] : in[1].end;
          if (!by_channel) fill(slab_to, h_begin * layout[2], T(0));
          for (std::int64_t h = h_begin; h < h_end; ++h) {
            T* const row = slab_to + h * layout[2];
            const S* const row_from = from + (first[0] + args.stride[0] * d) * source.strides[2] +
                                      (first[1] + args.stride[1] * h) * source.strides[3];
            if (by_channel) {
              gather_channels(row + in[2].begin, channel_pitch, row_from, pixel_stride, pixels, channels);
              continue;
            }
            pad(row, in[2].begin);
            gather_row(row + in[2].begin, row_from, pixel_stride, pixels, before, behind);
            pad(row + in[2].end, layout[2] - in[2].end);
          }
          if (!by_channel) fill(slab_to + h_end * layout[2], (layout[1] - h_end) * layout[2], T(0));
        }
      }
      if (!by_channel) fill(to + used, args.plane_pitch - used, T(0));
    }
  }
}

}  // namespace convt::host::CONVT_ISA
