#pragma once

#include "host/grid.hpp"
#include "host/simd.hpp"

namespace convt::host::CONVT_ISA {

template <class T>
inline void fill(T* to, std::int64_t count, T value) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = value;
}

// Channels are neighbours in memory: transposed in vector-sized squares.
template <class S, class T>
inline void gather_channels(T* to, std::int64_t plane_stride, const S* from, std::int64_t pixel_stride,
                            std::int64_t pixels, std::int64_t channels) {
  constexpr int L = kLanes<T>;
  std::int64_t channel = 0;
  for (; channel + L <= channels; channel += L) {
    std::int64_t pixel = 0;
    for (; pixel + L <= pixels; pixel += L) {
      Vec<T> rows[L];
      for (int i = 0; i < L; ++i) {
        alignas(64) T row[L];
        widen_row(row, from + (pixel + i) * pixel_stride + channel, L);
        rows[i] = load(row);
      }
      transpose<T>(rows);
      for (int i = 0; i < L; ++i) store(to + (channel + i) * plane_stride + pixel, rows[i]);
    }
    for (; pixel < pixels; ++pixel) {
      for (int i = 0; i < L; ++i) {
        to[(channel + i) * plane_stride + pixel] = widen(from[pixel * pixel_stride + channel + i]);
      }
    }
  }
  for (; channel < channels; ++channel) {
    for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
      to[channel * plane_stride + pixel] = widen(from[pixel * pixel_stride + channel]);
    }
  }
}

// `before` and `behind`: elements of the source row before from[0] and after the last pixel, which vectors may read.
template <class S, class T>
inline void gather_row(T* to, const S* from, std::int64_t stride, std::int64_t pixels, std::int64_t before, std::int64_t behind) {
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

// Fills patch[channel][plane][image][d][h][w] for the box. Every element of every plane is written: runs read across
// rows and vectors read past the last one. `limit` clips the box itself (a gradient's sum must not see a neighbour's
// pixels); positions are laid out at the pitches of `layout`.
template <class S, class T>
inline void load_patch(const PatchArgs& args, const std::int64_t (&layout)[3], const Box& box, const std::int64_t (&extent)[3],
                       std::int64_t channel_begin, std::int64_t channels, T* patch) {
  const TensorView& source = args.source;
  const std::int64_t used = box.images * layout[0] * layout[1] * layout[2];
  const bool by_channel = source.strides[1] == 1 && source.strides[4] != 1 && channels >= kLanes<T>;
  const std::int64_t channel_step = by_channel ? channels : 1;
  const std::int64_t channel_pitch = args.planes * args.plane_pitch;
  for (std::int64_t channel = 0; channel < channels; channel += channel_step) {
    for (std::int64_t plane = 0; plane < args.planes; ++plane) {
      T* const first = patch + channel * channel_pitch + plane * args.plane_pitch;
      const std::int64_t(&residue)[3] = args.residue[plane];
      const auto clear = [&](std::int64_t begin, std::int64_t count) {
        for (std::int64_t c = 0; c < channel_step; ++c) fill(first + c * channel_pitch + begin, count, T(0));
      };
      // W pixels that lie inside the source: stride * (origin + x) + residue in [0, size).
      const std::int64_t origin = box.begin[2] + args.low[2];
      const std::int64_t stride = args.stride[2];
      std::int64_t x_begin = residue[2] + stride * origin < 0 ? divide_up(-residue[2] - stride * origin, stride) : 0;
      const std::int64_t room = source.sizes[4] - residue[2] - stride * origin;
      const std::int64_t x_end = smaller(extent[2], room > 0 ? divide_up(room, stride) : 0);
      x_begin = smaller(x_begin, larger(x_end, 0));
      // Neighbours in the row; with another pixel stride than 1 they are not the next elements.
      const bool dense = source.strides[4] == 1;
      const std::int64_t before = dense ? stride * (origin + x_begin) + residue[2] : 0;
      const std::int64_t behind = dense ? room - 1 - stride * (x_end - 1) : 0;
      for (std::int64_t image = 0; image < box.images; ++image) {
        for (std::int64_t d = 0; d < layout[0]; ++d) {
          const std::int64_t source_d = args.stride[0] * (box.begin[0] + args.low[0] + d) + residue[0];
          for (std::int64_t h = 0; h < layout[1]; ++h) {
            const std::int64_t source_h = args.stride[1] * (box.begin[1] + args.low[1] + h) + residue[1];
            const std::int64_t row = ((image * layout[0] + d) * layout[1] + h) * layout[2];
            const bool inside = d < extent[0] && h < extent[1] && source_d >= 0 && source_d < source.sizes[2] &&
                                source_h >= 0 && source_h < source.sizes[3] && x_begin < x_end;
            if (!inside) {
              clear(row, layout[2]);
              continue;
            }
            clear(row, x_begin);
            const S* const from = static_cast<const S*>(source.data) + (box.image + image) * source.strides[0] +
                                  (channel_begin + channel) * source.strides[1] + source_d * source.strides[2] +
                                  source_h * source.strides[3] +
                                  (stride * (origin + x_begin) + residue[2]) * source.strides[4];
            if (by_channel) {
              gather_channels(first + row + x_begin, channel_pitch, from, stride * source.strides[4], x_end - x_begin,
                              channels);
            } else {
              gather_row(first + row + x_begin, from, stride * source.strides[4], x_end - x_begin, before, behind);
            }
            clear(row + x_end, layout[2] - x_end);
          }
        }
      }
      clear(used, args.plane_pitch - used);
    }
  }
}

}  // namespace convt::host::CONVT_ISA
