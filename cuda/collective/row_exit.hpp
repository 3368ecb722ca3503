#pragma once

#include "collective/exit_table.hpp"

namespace convt {

// Sums of warpgroups to rows of an output with phases. A warp has all W phases of its channels (RowOrder): it turns them in shared
// memory, a slice of positions at a time, to the order of the output's rows. Rows of whole, aligned pieces of 16 bytes leave by
// those; others by words, neighbours by neighbouring lanes, so that a store fills its line wherever the row begins. Nobody else
// waits, and every phase is reached by a tap.
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
    std::uint32_t low, high; // of digits of H and D: see tops_within
  };
  static constexpr std::int32_t kUnits = kExitBytes - kMmaRows * int(sizeof(Unit));

  // What a warp knows of its tile.
  struct Target {
    char* first;                    // W phase 0 of the tile's first position, of outer phase 0 and the first channel
    std::int32_t begin, end, row;   // elements of a row that exist, and that a whole tile has
    std::int32_t images;
    std::int32_t own, pairs;        // its slice, and the table of its positions
    bool in_pieces;
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
      if (lane < kMmaRows) {
        warp.template store<Unit>(
            target.own + kUnits + lane * std::int32_t(sizeof(Unit)),
            lane < params.order.units ? unit_of(params, tile, block, first_unit + lane) : Unit{0, kExitOffset, 0});
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
      if (target.in_pieces) {
        leave_in_pieces(warp, params, target, slice);
      } else if (kBytes == 2 && params.store_bytes == 2) {
        leave_in_words<true>(warp, params, target, slice);
      } else {
        leave_in_words<false>(warp, params, target, slice);
      }
      warp.sync();
    }
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
    // Where rows are aligned, those of a tile begin at pieces of a slice (TileBox::even).
    target.in_pieces = params.store_bytes == 16 && reinterpret_cast<std::uintptr_t>(target.first) % 16 == 0 &&
                       (target.row | target.begin | target.end) % kVector == 0;
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
      return {0, kExitOffset, 0};
    }
    const std::int32_t d = params.axes[2].by_stride.quotient(block.outer_begin + outer);
    const std::int32_t h = params.axes[2].by_stride.remainder(block.outer_begin + outer, d);
    const ExitDigits of_h = digits(params.axes[2], tile, 2, h), of_d = digits(params.axes[1], tile, 1, d);
    return {(channel * params.output_strides[1] + d * params.output_strides[2] + h * params.output_strides[3]) * kBytes,
            std::uint32_t(of_h.low * 65536 + of_d.low), kExitOffset + std::uint32_t(of_h.high * 65536 + of_d.high)};
  }
  CONVT_HOST_DEVICE static ExitDigits digits(const TileAxis& along, const Tile& tile, int axis, std::int32_t phase) {
    return existing_digits(along, along.stride * tile.q[axis] + phase - along.origin, tile.count[axis]);
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
      std::int32_t at = target.own + params.order.by_units.remainder(row, phase) * params.unit_pitch + phase * kBytes +
                        lane % 4 * 2 * pitch;
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const auto& sum = state.sum[0][slice * kTiles + j];
        store_two(warp, at, pack_pair<kOperand>(sum[i * 2][lane] + bias[i][lane], sum[i * 2 + 1][lane] + bias[i][lane]),
                  pitch);
        at += kMmaPixels * pitch;
      }
    }
  }

  // Two phases are one thread's: four elements lie side by side.
  template <class Warp, class State, int kLanes>
  CONVT_HOST_DEVICE static void turn_two(Warp& warp, const State& state, const GemmParams& params, const Target& target,
                                         const Lanes<float, kLanes> (&bias)[2], int slice, int lane) {
    const std::int32_t own = target.own + lane / 4 * params.unit_pitch + lane % 4 * 4 * kBytes;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const auto& sum = state.sum[0][slice * kTiles + j];
      const std::int32_t at = own + j * kMmaPixels * 2 * kBytes;
      const Pair<kOperand> left = pack_pair<kOperand>(sum[0][lane] + bias[0][lane], sum[2][lane] + bias[1][lane]);
      const Pair<kOperand> right = pack_pair<kOperand>(sum[1][lane] + bias[0][lane], sum[3][lane] + bias[1][lane]);
      if constexpr (kBytes == 4) {
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

  // Where an element of a slice goes: found once for all units.
  struct Run {
    char* place;                    // of the tile's first outer phase and channel
    std::int32_t x;                 // elements from the beginning of the tile's row; `row` or more: it goes nowhere
    std::int32_t image;
    std::uint32_t digits;           // of H and D
  };
  template <class Warp>
  CONVT_HOST_DEVICE static Run run_at(Warp& warp, const GemmParams& params, const Target& target, int slice,
                                      std::int32_t element) {
    const std::int32_t phases = params.order.phases, at = slice * kSlice * phases + element;
    const std::int32_t position = params.order.by_phases.quotient(at);
    const std::int32_t phase = params.order.by_phases.remainder(at, position);
    const ExitPair pair = warp.template load<ExitPair>(target.pairs + position / 2 * std::int32_t(sizeof(ExitPair)));
    const std::int32_t within = position % 2 * phases + phase;   // elements from the pair's first
    return {target.first + pair.offset + within * kBytes, (pair.hw & 0xffff) * phases + within, pair.nd >> 16,
            (std::uint32_t(pair.hw) & 0xffff0000u) | (std::uint32_t(pair.nd) & 0xffff)};
  }

  // Of every step-th unit: where it goes, and what it has at an offset. Some beyond the last go nowhere.
  static constexpr int kBatch = 4;   // that are loaded before any is stored
  template <class Warp>
  CONVT_HOST_DEVICE static void load_units(Warp& warp, const Target& target, std::int32_t first, std::int32_t step,
                                           Unit (&to)[kBatch]) {
#pragma unroll
    for (int at = 0; at < kBatch; ++at) {
      const std::int32_t unit = first + at * step;
      to[at] = warp.template load<Unit>(target.own + kUnits + unit * std::int32_t(sizeof(Unit)));
    }
  }
  template <class Warp, class Piece>
  CONVT_HOST_DEVICE static void load_values(Warp& warp, const GemmParams& params, std::int32_t first, std::int32_t step,
                                            std::int32_t from, Piece (&value)[kBatch]) {
#pragma unroll
    for (int at = 0; at < kBatch; ++at) {
      const std::int32_t unit = first + at * step, last = params.order.units - 1;
      value[at] = warp.template load<Piece>(from + (unit < last ? unit : last) * params.unit_pitch);
    }
  }
  CONVT_HOST_DEVICE static bool exists(const Run& run, const Unit& unit) {
    return tops_within(run.digits, unit.low, unit.high) == kExitTops;
  }

  // A lane has the same pieces of several units.
  template <class Warp>
  CONVT_HOST_DEVICE static void leave_in_pieces(Warp& warp, const GemmParams& params, const Target& target, int slice) {
    const std::int32_t across = 1 << params.across_log2, step = 32 >> params.across_log2;
    warp.lanes([&](int lane) {
#pragma unroll 1
      for (std::int32_t piece = lane & (across - 1); piece < kPieces * params.order.phases; piece += across) {
        const Run run = run_at(warp, params, target, slice, piece * kVector);
        if (run.x < target.begin || run.x >= target.end || run.image >= target.images) continue;
#pragma unroll 1
        for (std::int32_t first = lane >> params.across_log2; first < params.order.units; first += kBatch * step) {
          Unit to[kBatch];
          Vector16 value[kBatch];
          load_units(warp, target, first, step, to);
          load_values(warp, params, first, step, target.own + piece * 16, value);
#pragma unroll
          for (int at = 0; at < kBatch; ++at) {
            if (exists(run, to[at])) warp.store_global16(run.place + to[at].offset, value[at]);
          }
        }
      }
    });
  }

  // A lane has the same words of all units. Where a row begins between two words of the output, its words begin an element earlier
  // in the slice: so do all units' rows, or, `kEach`, every one has to be asked. Elements without a neighbour in their row, or in
  // the slice, leave alone.
  template <bool kEach, class Warp>
  CONVT_HOST_DEVICE static void leave_in_words(Warp& warp, const GemmParams& params, const Target& target, int slice) {
    constexpr int kElements = 4 / kBytes;
    const std::int32_t words = kSlice * params.order.phases / kElements;
    // Elements from the beginning of a word of the output.
    const auto behind_word = [](const char* place) {
      return std::int32_t(reinterpret_cast<std::uintptr_t>(place) % 4) / kBytes;
    };
    warp.lanes([&](int lane) {
#pragma unroll 1
      for (std::int32_t word = lane; word < words; word += 32) {
        const Run run = run_at(warp, params, target, slice, word * kElements);
        if (run.x >= target.row || run.image >= target.images) continue;
        const auto is_there = [&](std::int32_t x) { return x >= target.begin && x < target.end; };
        // Of the elements before, here and behind those that are there, and in this slice.
        const int here = is_there(run.x), behind = is_there(run.x + 1);
        const int present = (word > 0 && is_there(run.x - 1)) | here << 1 | behind << 2;
        // Nobody else has a word that begins with the element behind.
        const int is_last = behind & int(word + 1 == words || run.x + kElements >= target.row);
        const std::int32_t all_back = behind_word(run.place);
#pragma unroll 1
        for (std::int32_t first = 0; first < params.order.units; first += kBatch) {
          Unit to[kBatch];
          std::uint32_t own[kBatch], earlier[kBatch];
          load_units(warp, target, first, 1, to);
          load_values(warp, params, first, 1, target.own + word * 4, own);
          if (kElements == 2) load_values(warp, params, first, 1, target.own + (word > 0 ? word - 1 : 0) * 4, earlier);
#pragma unroll
          for (int at = 0; at < kBatch; ++at) {
            const bool there = exists(run, to[at]);
            char* const place = run.place + to[at].offset;
            if constexpr (kElements == 1) {
              if (there && here != 0) warp.template store_global<std::uint32_t>(place, own[at]);
            } else {
              const std::int32_t back = kEach ? behind_word(place) : all_back;
              const int pair = there ? present >> (1 - back) & 3 : 0;
              const std::uint32_t value = back > 0 ? earlier[at] >> 16 | own[at] << 16 : own[at];
              char* const begin = place - back * kBytes;
              if (pair == 3) warp.template store_global<std::uint32_t>(begin, value);
              if (pair == 1) warp.template store_global<Element>(begin, Element(value));
              if (pair == 2) warp.template store_global<Element>(begin + kBytes, Element(value >> 16));
              if (there && (is_last & back) != 0) {
                warp.template store_global<Element>(place + kBytes, Element(own[at] >> 16));
              }
            }
          }
        }
      }
    });
  }
};

}  // namespace convt
