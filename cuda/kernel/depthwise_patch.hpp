#pragma once

#include "arch/copy.hpp"
#include "kernel/direct_params.hpp"

// A box of pixels of some channels, widened to the accumulator's type in shared memory: what the gradients of depthwise
// problems read. Pixels that are a stride apart lie side by side, along W so that neighbouring lanes never meet in a bank,
// along H so that the compiler knows the distance.
namespace convt {

// A line is a row of pixels of one plane: of all channels, or of those that lie beside each other. With channels innermost
// and but one row, it is a pixel.
struct alignas(16) DepthwiseLine {
  std::int32_t from;                     // in the tensor, from the box's first element on; bytes
  std::int32_t to;                       // in the box; bytes
  std::int32_t beside;                   // so many of the channels beside each other exist
  std::int32_t unused;
};

struct DepthwisePatch {
  std::int64_t strides[2 + kAxes];       // of the tensor, elements
  std::int32_t steps[3];  // of channels, planes and lines again: 32 bits are enough inside a box; bytes
  std::int32_t extent[kAxes];  // pixels that the tensor has
  std::int32_t channels;  // channels that the tensor has
  std::int32_t begin, table;  // where the box and its lines are in shared memory; accumulators
  std::int32_t stack_pitch, plane_pitch, row_phase_pitch, row_pitch;  // accumulators
  std::int32_t side_pitch, phase_pitch, column_pitch;  // accumulators
  std::int32_t lead;  // columns before the box that a vector may bring: a multiple of the phases
  std::int32_t units;  // loads of one line
  std::int32_t lines;
  FastDivisor by_lanes;  // threads side by side that load a line
  FastDivisor by_rows, by_planes;  // of the box
  FastDivisor by_row_phases, by_phases;  // the strides along H and W, or 1
  FastDivisor by_beside;  // channels beside each other; more are stacked
  FastDivisor by_units;  // loads of a channel along W or, channels innermost, of a pixel
  bool channels_inner;  // which way a load goes on: along the channels, or along the columns
  bool pixel_lines;  // a line is a pixel
  bool vectors;  // loads bring kDepthwiseUnit elements
};

// Elements of a vector load: 16 bytes, 8 of the 16-bit types.
constexpr int depthwise_unit(std::int64_t storage_bytes) { return storage_bytes == 8 ? 2 : 4; }
template <class S>
inline constexpr int kDepthwiseUnit = depthwise_unit(sizeof(S));

// Where column `column` of the box lies in a row.
CONVT_HOST_DEVICE inline std::int32_t depthwise_column(const DepthwisePatch& patch, std::int32_t column) {
  const std::int32_t at = column + patch.lead, q = patch.by_phases.quotient(at);
  return patch.by_phases.remainder(at, q) * patch.phase_pitch + q * patch.column_pitch;
}
CONVT_HOST_DEVICE inline std::int32_t depthwise_row(const DepthwisePatch& patch, std::int32_t row) {
  const std::int32_t q = patch.by_row_phases.quotient(row);
  return patch.by_row_phases.remainder(row, q) * patch.row_phase_pitch + q * patch.row_pitch;
}
CONVT_HOST_DEVICE inline std::int32_t depthwise_slot(const DepthwisePatch& patch, std::int32_t slot) {
  const std::int32_t stack = patch.by_beside.quotient(slot);
  return stack * patch.stack_pitch + patch.by_beside.remainder(slot, stack) * patch.side_pitch;
}

// The lines of a box whose first pixel and channel these are.
template <class S>
CONVT_HOST_DEVICE inline void write_depthwise_lines(const DepthwisePatch& patch, std::int32_t channel,
                                                    const std::int32_t (&origin)[kAxes], int thread, int threads,
                                                    DepthwiseLine* table) {
  for (std::int32_t line = thread; line < patch.lines; line += threads) {
    const std::int32_t slab = patch.by_rows.quotient(line), row = patch.by_rows.remainder(line, slab);
    const std::int32_t stack = patch.by_planes.quotient(slab), plane = patch.by_planes.remainder(slab, stack);
    const std::int32_t slot = stack * std::int32_t(patch.by_beside.divisor);
    const std::int32_t first_row = patch.pixel_lines ? 0 : row, column = patch.pixel_lines ? row : 0;
    const bool exists = std::uint32_t(origin[0] + plane) < std::uint32_t(patch.extent[0]) &&
                        std::uint32_t(origin[1] + first_row) < std::uint32_t(patch.extent[1]) &&
                        (!patch.pixel_lines || std::uint32_t(origin[2] + column) < std::uint32_t(patch.extent[2]));
    const std::int32_t at = patch.pixel_lines ? depthwise_column(patch, column) : depthwise_row(patch, row);
    table[line] = {slot * patch.steps[0] + plane * patch.steps[1] + row * patch.steps[2],
                   (stack * patch.stack_pitch + plane * patch.plane_pitch + at) * std::int32_t(sizeof(Accumulator<S>)),
                   exists ? patch.channels - channel - slot : 0, 0};
  }
}

template <class S, bool kVectors>
struct DepthwisePatchLoader {
  static constexpr int kUnit = kVectors ? kDepthwiseUnit<S> : 1;
  static constexpr int kBatch = 4;  // loads in flight
  using T = Accumulator<S>;

  // What one load brings, before conversion.
  struct Raw {
    S element[kUnit];
  };
  static CONVT_HOST_DEVICE Raw read(const S* from) {
    Raw raw;
    if constexpr (kVectors) {
      read_global_unit<sizeof(Raw)>(&raw, from);
    } else {
      raw.element[0] = read_global(from);
    }
    return raw;
  }

  // kWhole: the elements of a unit are neighbours in the box as well.
  template <bool kWhole>
  static CONVT_HOST_DEVICE void write(char* const (&to)[kUnit], std::int32_t offset, const Raw& raw, bool valid) {
    T value[kUnit];
#pragma unroll
    for (int k = 0; k < kUnit; ++k) value[k] = valid ? widen(raw.element[k]) : T(0);
    if constexpr (kWhole) {
      SharedVector<T> vector;
#pragma unroll
      for (int k = 0; k < kUnit; ++k) vector.lane[k] = value[k];
      *reinterpret_cast<SharedVector<T>*>(to[0] + offset) = vector;
    } else {
#pragma unroll
      for (int k = 0; k < kUnit; ++k) *reinterpret_cast<T*>(to[k] + offset) = value[k];
    }
  }

  // Channel `side` of the lines that are this thread's: the same columns in each. `tensor` is where invalid loads go.
  template <bool kWhole>
  static CONVT_HOST_DEVICE void load_unit(const DepthwisePatch& patch, const S* tensor, const char* source, bool exists,
                                          std::int32_t side, char* const (&to)[kUnit], std::int32_t line,
                                          std::int32_t line_step, const DepthwiseLine* table) {
    for (; line < patch.lines; line += kBatch * line_step) {
      Raw raw[kBatch];
      std::int32_t offset[kBatch];
      bool valid[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        // A line beyond the last one is the first of the batch once more.
        const std::int32_t next = line + k * line_step, at = next < patch.lines ? next : line;
        const DepthwiseLine entry = table[at];
        valid[k] = exists && side < entry.beside;
        offset[k] = entry.to;
        // No branch stands between the loads: what does not exist is read from the first element and dropped.
        raw[k] = read(valid[k] ? reinterpret_cast<const S*>(source + entry.from) : tensor);
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) write<kWhole>(to, offset[k], raw[k], valid[k]);
    }
  }

  static CONVT_HOST_DEVICE void load(const DepthwisePatch& patch, const S* tensor, std::int32_t image,
                                     std::int32_t channel, const std::int32_t (&origin)[kAxes], int thread, int threads,
                                     const DepthwiseLine* table, T* shared) {
    const std::int32_t lanes = std::int32_t(patch.by_lanes.divisor), line_step = threads / lanes;
    const std::int32_t line = patch.by_lanes.quotient(thread), lane = patch.by_lanes.remainder(thread, line);
    if (line >= line_step) return;
    const S* const source = tensor + image * patch.strides[0] + channel * patch.strides[1] +
                            origin[0] * patch.strides[2] + origin[1] * patch.strides[3];
    for (std::int32_t unit = lane; unit < patch.units; unit += lanes) {
      const std::int32_t outer = patch.by_units.quotient(unit), inner = patch.by_units.remainder(unit, outer);
      std::int32_t side, column;
      char* to[kUnit];
      if (patch.channels_inner) {
        column = outer;
        side = inner * kUnit;
        const std::int32_t at = patch.pixel_lines ? 0 : depthwise_column(patch, column);
#pragma unroll
        for (int k = 0; k < kUnit; ++k) to[k] = reinterpret_cast<char*>(shared + at + depthwise_slot(patch, side + k));
      } else {
        side = outer;
        // Vectors start at multiples of their length.
        column = inner * kUnit - (origin[2] & (kUnit - 1));
#pragma unroll
        for (int k = 0; k < kUnit; ++k) {
          to[k] = reinterpret_cast<char*>(shared + depthwise_column(patch, column + k) + side * patch.side_pitch);
        }
      }
      const bool exists = patch.pixel_lines || std::uint32_t(origin[2] + column) < std::uint32_t(patch.extent[2]);
      const char* const from =
          reinterpret_cast<const char*>(source + side * patch.strides[1] + (origin[2] + column) * patch.strides[4]);
      if constexpr (kUnit * sizeof(T) == sizeof(SharedVector<T>)) {
        if (patch.channels_inner && patch.side_pitch == 1) {
          load_unit<true>(patch, tensor, from, exists, side, to, line, line_step, table);
          continue;
        }
      }
      load_unit<false>(patch, tensor, from, exists, side, to, line, line_step, table);
    }
  }
};

// Loads a box whose lines are written; pixels and channels that do not exist are zeros.
template <class S>
CONVT_HOST_DEVICE inline void load_depthwise_patch(const DepthwisePatch& patch, const void* tensor, std::int32_t image,
                                                   std::int32_t channel, const std::int32_t (&origin)[kAxes],
                                                   int thread, int threads, Accumulator<S>* shared) {
  const S* const from = static_cast<const S*>(tensor);
  Accumulator<S>* const to = shared + patch.begin;
  const DepthwiseLine* const table = reinterpret_cast<const DepthwiseLine*>(shared + patch.table);
  if (patch.vectors) {
    DepthwisePatchLoader<S, true>::load(patch, from, image, channel, origin, thread, threads, table, to);
  } else {
    DepthwisePatchLoader<S, false>::load(patch, from, image, channel, origin, thread, threads, table, to);
  }
}

}  // namespace convt
