#pragma once

#include "collective/exit_table.hpp"

namespace convt {

// Sums of warpgroups to rows of an output with phases. A warp has all W phases of its channels (RowOrder): it turns them in shared
// memory, a slice of positions at a time, to the order of the output's rows, and stores pieces of 16 bytes that lie where such
// stores may. Nobody else waits, and every phase is reached by a tap.
//
// In a slice elements of a unit lie `shift` places further than positions and phases say: as far as its rows begin beyond a piece.
template <TileConfig kConfig, Operand kOperand>
struct RowExit {
  using Products = Mma<kConfig, kOperand>;
  using Output = Epilogue<kConfig, kOperand>;
  using Table = ExitTable<kConfig, kOperand>;
  using Element = std::conditional_t<is_float32(kOperand), std::uint32_t, std::uint16_t>;
  static constexpr int kBytes = operand_bytes(kOperand);
  static constexpr int kVector = operand_vector(kOperand);
  static constexpr int kSlice = kExitBytesOfRow / kBytes;     // positions
  static constexpr int kPieces = kExitBytesOfRow / 16;        // of 16 bytes, of a W phase
  static constexpr int kTiles = kSlice / kMmaPixels;
  static constexpr int kSlices = kConfig.warp_pixels() / kSlice;

  // Where a unit's rows go, and how many of a tile's rows exist. Kept behind what a warp turns.
  struct Unit {
    std::int64_t offset;     // bytes from the tile's first row of the first phase and channel
    std::uint32_t h, d;      // first digit, and behind it how many; 16 bits each
  };
  static constexpr std::int32_t kUnits = kExitBytes - kMmaRows * int(sizeof(Unit));

  // What a warp knows of its tile.
  struct Target {
    char* first;                    // W phase 0 of the tile's first position, of outer phase 0 and the first channel
    std::int32_t begin, end, row;   // elements of a row that exist, and that a whole tile has
    std::int32_t images;
    std::int32_t own, pairs;        // its slice, and the table of its positions
    std::int32_t shift, width;      // width: bytes of a store
  };

  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void write(Warp& warp, const typename Products::template State<kLanes>& state,
                                      const GemmParams& params, const Tile& tile, const PhaseBlock& block) {
    const std::int32_t first_unit = warp.index() % kConfig.warps_m * params.order.units;
    const Target target = target_of(warp, params, tile);
    Lanes<float, kLanes> bias[2];
    warp.lanes([&](int lane) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        bias[i][lane] = bias_of(warp, params, tile, first_unit, i * 8 + lane / 4);
      }
      if (lane < params.order.units) {
        warp.template store<Unit>(target.own + kUnits + lane * std::int32_t(sizeof(Unit)),
                                  unit_of(params, tile, block, first_unit + lane));
      }
    });
    const bool together = params.order.phases == 2;
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      warp.lanes([&](int lane) {
        if (together) {
          turn_two(warp, state, params, target, bias, slice, lane);
        } else {
          turn(warp, state, params, target, bias, slice, lane);
        }
      });
      warp.sync();
      leave(warp, params, target, slice, kPieces * params.order.phases);
      warp.sync();
      if (target.shift == 0) continue;
      // The last piece is the first of the next slice.
      warp.lanes([&](int lane) {
        if (lane >= params.order.units) return;
        const std::int32_t unit = target.own + lane * params.unit_pitch;
        warp.template store<Vector16>(unit, warp.template load<Vector16>(unit + kExitBytesOfRow * params.order.phases));
      });
      warp.sync();
    }
    if (target.shift == 0) return;
    leave(warp, params, target, kSlices, 1);
    warp.sync();
  }

 private:
  template <class Warp>
  CONVT_HOST_DEVICE static Target target_of(Warp& warp, const GemmParams& params, const Tile& tile) {
    const TileAxis& along = params.axes[3];
    const std::int64_t channel =
        std::int64_t(tile.conv_group) * params.out_channels + tile.channel_block * params.block_channels;
    std::int64_t origin = tile.q[0] * params.output_strides[0] + channel * params.output_strides[1];
#pragma unroll
    for (int axis = 1; axis < kTileAxes; ++axis) {
      origin += (params.axes[axis].stride * tile.q[axis] - params.axes[axis].origin) * params.output_strides[1 + axis];
    }
    Target target;
    target.first = static_cast<char*>(params.output) + origin * kBytes;
    const std::int64_t w = along.stride * tile.q[3] - along.origin, left = along.output - w;
    target.row = along.tile * along.stride;
    target.begin = w < 0 ? std::int32_t(-w) : 0;
    target.end = tile.count[3] * along.stride;
    if (left < target.end) target.end = std::int32_t(left);
    target.images = tile.count[0];
    target.own = params.shared.slices + warp.index() * kExitBytes;
    target.pairs = Table::at(params, warp.index() / kConfig.warps_m * kConfig.warp_pixels() / 2);
    target.width = params.store_bytes;
    target.shift =
        std::int32_t(reinterpret_cast<std::uintptr_t>(target.first) & std::uintptr_t(target.width - 1)) / kBytes;
    return target;
  }

  template <class Warp>
  CONVT_HOST_DEVICE static float bias_of(Warp& warp, const GemmParams& params, const Tile& tile,
                                         std::int32_t first_unit, std::int32_t row) {
    if (params.bias == nullptr) return 0;
    const std::int32_t phase = params.order.by_units.quotient(row);
    const std::int32_t unit = first_unit + params.order.by_units.remainder(row, phase);
    const std::int32_t outer = params.order.by_channels.quotient(unit);
    const std::int32_t channel =
        tile.channel_block * params.block_channels + params.order.by_channels.remainder(unit, outer);
    if (channel >= params.out_channels) return 0;
    const std::int64_t at = std::int64_t(tile.conv_group) * params.out_channels + channel;
    return Output::to_float(warp, static_cast<const char*>(params.bias) + at * params.bias_stride * kBytes);
  }

  CONVT_HOST_DEVICE static Unit unit_of(const GemmParams& params, const Tile& tile, const PhaseBlock& block,
                                        std::int32_t unit) {
    const std::int32_t outer = params.order.by_channels.quotient(unit);
    const std::int32_t channel = params.order.by_channels.remainder(unit, outer);
    if (outer >= block.outer_count || tile.channel_block * params.block_channels + channel >= params.out_channels) {
      return {0, 0, 0};
    }
    const std::int32_t d = params.axes[2].by_stride.quotient(block.outer_begin + outer);
    const std::int32_t h = params.axes[2].by_stride.remainder(block.outer_begin + outer, d);
    return {(channel * params.output_strides[1] + d * params.output_strides[2] + h * params.output_strides[3]) * kBytes,
            digits(params.axes[2], tile, 2, h), digits(params.axes[1], tile, 1, d)};
  }
  CONVT_HOST_DEVICE static std::uint32_t digits(const TileAxis& along, const Tile& tile, int axis, std::int32_t phase) {
    const std::int64_t begin = along.stride * tile.q[axis] + phase - along.origin, left = along.output - begin;
    const std::int32_t low = begin < 0 ? along.by_stride.quotient(std::int32_t(along.stride - 1 - begin)) : 0;
    std::int32_t high = tile.count[axis];
    if (left < std::int64_t(high) * along.stride) {
      high = left > 0 ? along.by_stride.quotient(std::int32_t(left + along.stride - 1)) : 0;
    }
    return std::uint32_t(low | (high > low ? high - low : 0) << 16);
  }

  // A slice's sums, one by one.
  template <class Warp, class State, int kLanes>
  CONVT_HOST_DEVICE static void turn(Warp& warp, const State& state, const GemmParams& params, const Target& target,
                                     const Lanes<float, kLanes> (&bias)[2], int slice, int lane) {
    const std::int32_t pitch = params.order.phases * kBytes;   // of a position
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int32_t row = i * 8 + lane / 4, phase = params.order.by_units.quotient(row);
      if (phase >= params.order.phases) continue;
      std::int32_t at = target.own + params.order.by_units.remainder(row, phase) * params.unit_pitch +
                        (phase + target.shift) * kBytes + lane % 4 * 2 * pitch;
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const auto& sum = state.sum[0][slice * kTiles + j];
        store_two(warp, at, pack_pair<kOperand>(sum[i * 2][lane] + bias[i][lane], sum[i * 2 + 1][lane] + bias[i][lane]),
                  pitch);
        at += kMmaPixels * pitch;
      }
    }
  }

  // Two phases are one thread's: four elements lie side by side, and are stored as one, as pairs, or as a pair between two.
  template <class Warp, class State, int kLanes>
  CONVT_HOST_DEVICE static void turn_two(Warp& warp, const State& state, const GemmParams& params, const Target& target,
                                         const Lanes<float, kLanes> (&bias)[2], int slice, int lane) {
    const std::int32_t own = target.own + lane / 4 * params.unit_pitch + (lane % 4 * 4 + target.shift) * kBytes;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const auto& sum = state.sum[0][slice * kTiles + j];
      const float value[4] = {sum[0][lane] + bias[0][lane], sum[2][lane] + bias[1][lane], sum[1][lane] + bias[0][lane],
                              sum[3][lane] + bias[1][lane]};
      const std::int32_t at = own + j * kMmaPixels * 2 * kBytes;
      if (target.shift % 2 != 0) {
        store_two(warp, at, pack_pair<kOperand>(value[0], value[3]), 3 * kBytes);
        warp.template store<Pair<kOperand>>(at + kBytes, pack_pair<kOperand>(value[1], value[2]));
        continue;
      }
      const Pair<kOperand> left = pack_pair<kOperand>(value[0], value[1]);
      const Pair<kOperand> right = pack_pair<kOperand>(value[2], value[3]);
      if (target.shift % 4 != 0) {
        warp.template store<Pair<kOperand>>(at, left);
        warp.template store<Pair<kOperand>>(at + 2 * kBytes, right);
      } else if constexpr (kBytes == 4) {
        warp.template store<Vector16>(
            at, {{std::uint32_t(left), std::uint32_t(left >> 32), std::uint32_t(right), std::uint32_t(right >> 32)}});
      } else {
        warp.template store<std::uint64_t>(at, left | std::uint64_t(right) << 32);
      }
    }
  }

  // A pair whose elements lie `pitch` bytes apart.
  template <class Warp>
  CONVT_HOST_DEVICE static void store_two(Warp& warp, std::int32_t at, Pair<kOperand> pair, std::int32_t pitch) {
    warp.template store<Element>(at, Element(pair));
    warp.template store<Element>(at + pitch, Element(pair >> 8 * kBytes));
  }

  // Stores so many pieces of every unit. A lane has the same pieces of several units: where they go is found once.
  template <class Warp>
  CONVT_HOST_DEVICE static void leave(Warp& warp, const GemmParams& params, const Target& target, int slice,
                                      std::int32_t pieces) {
    const std::int32_t phases = params.order.phases, across = 1 << params.across_log2;
    warp.lanes([&](int lane) {
#pragma unroll 1
      for (std::int32_t piece = lane & (across - 1); piece < pieces; piece += across) {
        // The first element of the piece among the warp's.
        const std::int32_t first = slice * kSlice * phases + piece * kVector - target.shift;
        const std::int32_t left = kConfig.warp_pixels() * phases - first, all = left < kVector ? left : kVector;
        std::int32_t at = first < 0 ? -first : 0;
#pragma unroll 1
        while (at < all) {
          const std::int32_t position = params.order.by_phases.quotient(first + at);
          const std::int32_t phase = params.order.by_phases.remainder(first + at, position);
          const ExitPair pair =
              warp.template load<ExitPair>(target.pairs + position / 2 * std::int32_t(sizeof(ExitPair)));
          const std::int32_t within = position % 2 * phases + phase;   // elements from the pair's first
          const std::int32_t x = (pair.hw & 0xffff) * phases + within, rest = target.row - x;
          if (rest <= 0) {   // between rows of the tile
            at += (2 - position % 2) * phases - phase;
            continue;
          }
          const std::int32_t run = rest < all - at ? rest : all - at;
          const std::int32_t begin = target.begin > x ? at + target.begin - x : at;
          const std::int32_t end = at + (target.end - x < run ? target.end - x : run);
          if (begin < end && pair.nd >> 16 < target.images) {
            char* const place = target.first + pair.offset + (within - at) * kBytes;
            const bool whole = end - begin == kVector;
            leave_units(warp, params, target, pair, place, piece, lane, whole ? target.width : 0, begin, end);
          }
          at += run;
        }
      }
    });
  }

  // Elements [begin, end) of a piece of all the lane's units; `width`: bytes of the stores of a whole piece, or 0.
  template <class Warp>
  CONVT_HOST_DEVICE static void leave_units(Warp& warp, const GemmParams& params, const Target& target,
                                            const ExitPair& pair, char* place, std::int32_t piece, int lane,
                                            std::int32_t width, std::int32_t begin, std::int32_t end) {
    const std::int32_t step = 32 >> params.across_log2, units = params.order.units;
    const std::int32_t first = target.own + piece * 16;
    if (width == 16) {
#pragma unroll 1
      for (std::int32_t unit = lane >> params.across_log2; unit < units; unit += 2 * step) {
        // Both are loaded before either is stored.
        const bool two = unit + step < units;
        const std::int32_t other = two ? unit + step : unit;
        const Unit to[2] = {unit_at(warp, target, unit), unit_at(warp, target, other)};
        const Vector16 value[2] = {warp.template load<Vector16>(first + unit * params.unit_pitch),
                                   warp.template load<Vector16>(first + other * params.unit_pitch)};
        if (exists(pair, to[0])) warp.store_global16(place + to[0].offset, value[0]);
        if (two && exists(pair, to[1])) warp.store_global16(place + to[1].offset, value[1]);
      }
      return;
    }
#pragma unroll 1
    for (std::int32_t unit = lane >> params.across_log2; unit < units; unit += step) {
      const Unit to = unit_at(warp, target, unit);
      const Vector16 value = warp.template load<Vector16>(first + unit * params.unit_pitch);
      if (exists(pair, to)) store(warp, place + to.offset, value, width, begin, end);
    }
  }

  template <class Warp>
  CONVT_HOST_DEVICE static Unit unit_at(Warp& warp, const Target& target, std::int32_t unit) {
    return warp.template load<Unit>(target.own + kUnits + unit * std::int32_t(sizeof(Unit)));
  }
  CONVT_HOST_DEVICE static bool exists(const ExitPair& pair, const Unit& unit) {
    const std::uint32_t h = std::uint32_t(pair.hw) >> 16, d = std::uint32_t(pair.nd) & 0xffff;
    return h - (unit.h & 0xffff) < unit.h >> 16 && d - (unit.d & 0xffff) < unit.d >> 16;
  }

  template <class Warp>
  CONVT_HOST_DEVICE static void store(Warp& warp, char* place, const Vector16& value, std::int32_t width,
                                      std::int32_t begin, std::int32_t end) {
    if (width == 8) {
#pragma unroll
      for (int word = 0; word < 4; word += 2) {
        warp.template store_global<std::uint64_t>(place + word * 4,
                                                  value.word[word] | std::uint64_t(value.word[word + 1]) << 32);
      }
    } else if (width == 4) {
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        warp.template store_global<std::uint32_t>(place + word * 4, value.word[word]);
      }
    } else {
#pragma unroll
      for (int element = 0; element < kVector; ++element) {
        if (element < begin || element >= end) continue;
        const std::uint32_t word = value.word[element * kBytes / 4];
        warp.template store_global<Element>(place + element * kBytes, Element(word >> element * kBytes % 4 * 8));
      }
    }
  }
};

}  // namespace convt
