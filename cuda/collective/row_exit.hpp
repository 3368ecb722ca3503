#pragma once

#include "collective/exit_table.hpp"

namespace convt {

// Sums of warpgroups to rows of an output with phases. A warp has all W phases of its channels (RowOrder), which are turned
// in shared memory, a slice of positions at a time, to the order of the output's rows. Rows of whole, aligned pieces of 16 bytes
// leave by those; others by words, neighbours by neighbouring lanes, so that a store fills its line wherever the row begins. Every
// phase is reached by a tap.
// `kApart`: by warps that do nothing else.
template <TileConfig kConfig, Operand kOperand, bool kApart>
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

  // Where a unit's rows go, and how many of a tile's rows exist. Kept behind a warp's first slice.
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
    std::int32_t units, pairs;      // the tables of its units and positions
    bool in_pieces;
    bool whole;                     // all of its units exist at all of its positions
  };

  template <int kLanes>
  using Places = Target;

  // `of`: the warp whose sums they are.
  template <class Warp>
  CONVT_HOST_DEVICE static void find(Warp& warp, Target& target, const GemmParams& params, const Tile& tile,
                                     const PhaseBlock& block, std::int32_t of) {
    const std::int32_t first_unit = of % kConfig.warps_m * params.order.units;
    target = target_of(params, tile, of);
    const std::int32_t last_unit = first_unit + params.order.units - 1;
    target.whole = kApart && params.order.units % kPieceBatch == 0 &&
                   params.order.by_channels.quotient(last_unit) < block.outer_count &&
                   (tile.channel_block + 1) * params.block_channels <= params.out_channels;
    for (int axis = 1; axis < kTileAxes - 1; ++axis) {
      const TileAxis& along = params.axes[axis];
      const std::int64_t first = along.stride * tile.q[axis] - along.origin;
      target.whole = target.whole && first >= 0 && tile.count[axis] == along.tile &&
                     first + std::int64_t(along.tile) * along.stride <= along.output;
    }
    warp.lanes([&](int lane) {
      if (lane < kMmaRows) {
        warp.template store<Unit>(
            target.units + lane * std::int32_t(sizeof(Unit)),
            lane < params.order.units ? unit_of(params, tile, block, first_unit + lane) : Unit{0, kExitOffset, 0});
      }
    });
  }

  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void turn(Warp& warp, const typename Products::template State<kLanes>& state,
                                     const Lanes<float, kLanes> (&bias)[2], const GemmParams& params, std::int32_t own,
                                     int slice) {
    const std::int32_t phases = params.order.phases;
    warp.lanes([&](int lane) {
      if (phases == 1) {
        turn_one(warp, state, params, own, bias, slice, lane);
      } else if (phases == 2) {
        turn_two(warp, state, params, own, bias, slice, lane);
      } else {
        turn_each(warp, state, params, own, bias, slice, lane);
      }
    });
  }

  template <class Warp>
  CONVT_HOST_DEVICE static void leave(Warp& warp, const Target& target, const GemmParams& params, std::int32_t own,
                                      int slice, std::int32_t) {
    constexpr bool kTwo = true, kEach = true;
    const bool together = (kApart || kBytes == 2) && params.store_bytes >= 2 * kBytes;
    if (target.in_pieces) {
      leave_in_pieces(warp, params, target, own, slice);
    } else if (!together && kBytes == 2) {
      leave_in_words<kTwo, kEach, false>(warp, params, target, own, slice);
    } else if (!together && !(kApart && target.whole)) {
      leave_in_words<kBytes == 2, !kEach, false>(warp, params, target, own, slice);
    } else if (!together) {
      leave_in_words<kBytes == 2, !kEach, kApart>(warp, params, target, own, slice);
    } else if (!(kApart && target.whole)) {
      leave_in_words<kTwo, !kEach, false>(warp, params, target, own, slice);
    } else {
      leave_in_words<kTwo, !kEach, kApart>(warp, params, target, own, slice);
    }
  }

 private:
  CONVT_HOST_DEVICE static Target target_of(const GemmParams& params, const Tile& tile, std::int32_t of) {
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
    target.units = params.shared.slices + of * kExitBytes + kUnits;
    target.pairs = Table::at(params, of / kConfig.warps_m * kConfig.warp_pixels() / 2);
    // Where rows are aligned, those of a tile begin at pieces of a slice (TileBox::even).
    target.in_pieces = params.store_bytes == 16 && reinterpret_cast<std::uintptr_t>(target.first) % 16 == 0 &&
                       (target.row | target.begin | target.end) % kVector == 0;
    return target;
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
  CONVT_HOST_DEVICE static void turn_each(Warp& warp, const State& state, const GemmParams& params, std::int32_t own,
                                          const Lanes<float, kLanes> (&bias)[2], int slice, int lane) {
    const std::int32_t pitch = params.order.phases * kBytes;   // of a position
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int32_t row = i * 8 + lane / 4, phase = params.order.by_units.quotient(row);
      if (phase >= params.order.phases) continue;
      std::int32_t at =
          own + params.order.by_units.remainder(row, phase) * params.unit_pitch + phase * kBytes + lane % 4 * 2 * pitch;
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const auto& sum = state.sum[0][slice * kTiles + j];
        store_two(warp, at, pack_pair<kOperand>(sum[i * 2][lane] + bias[i][lane], sum[i * 2 + 1][lane] + bias[i][lane]),
                  pitch);
        at += kMmaPixels * pitch;
      }
    }
  }

  // One phase: neighbouring positions lie side by side.
  template <class Warp, class State, int kLanes>
  CONVT_HOST_DEVICE static void turn_one(Warp& warp, const State& state, const GemmParams& params, std::int32_t first,
                                         const Lanes<float, kLanes> (&bias)[2], int slice, int lane) {
    const std::int32_t own = first + lane / 4 * params.unit_pitch + lane % 4 * 2 * kBytes;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const auto& sum = state.sum[0][slice * kTiles + j];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        warp.template store<Pair<kOperand>>(
            own + i * 8 * params.unit_pitch + j * kMmaPixels * kBytes,
            pack_pair<kOperand>(sum[i * 2][lane] + bias[i][lane], sum[i * 2 + 1][lane] + bias[i][lane]));
      }
    }
  }

  // Two phases are one thread's: four elements lie side by side.
  template <class Warp, class State, int kLanes>
  CONVT_HOST_DEVICE static void turn_two(Warp& warp, const State& state, const GemmParams& params, std::int32_t first,
                                         const Lanes<float, kLanes> (&bias)[2], int slice, int lane) {
    const std::int32_t own = first + lane / 4 * params.unit_pitch + lane % 4 * 4 * kBytes;
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
  // So many are loaded before any is stored: of the sixteen a whole part, and as registers allow.
  static constexpr int kPieceBatch = 4, kWordBatch = kApart || (kBytes == 4 && kConfig.planes < 8) ? 2 : 4;
  template <int kBatch, class Warp>
  CONVT_HOST_DEVICE static void load_units(Warp& warp, const Target& target, std::int32_t first, std::int32_t step,
                                           Unit (&to)[kBatch]) {
#pragma unroll
    for (int at = 0; at < kBatch; ++at) {
      const std::int32_t unit = first + at * step;
      to[at] = warp.template load<Unit>(target.units + unit * std::int32_t(sizeof(Unit)));
    }
  }
  template <int kBatch, class Warp, class Piece>
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
  CONVT_HOST_DEVICE static void leave_in_pieces(Warp& warp, const GemmParams& params, const Target& target,
                                                std::int32_t own, int slice) {
    const std::int32_t across = 1 << params.across_log2, step = 32 >> params.across_log2;
    warp.lanes([&](int lane) {
#pragma unroll 1
      for (std::int32_t piece = lane & (across - 1); piece < kPieces * params.order.phases; piece += across) {
        const Run run = run_at(warp, params, target, slice, piece * kVector);
        if (run.x < target.begin || run.x >= target.end || run.image >= target.images) continue;
#pragma unroll 1
        for (std::int32_t first = lane >> params.across_log2; first < params.order.units; first += kPieceBatch * step) {
          Unit to[kPieceBatch];
          Vector16 value[kPieceBatch];
          load_units(warp, target, first, step, to);
          load_values(warp, params, first, step, own + piece * 16, value);
#pragma unroll
          for (int at = 0; at < kPieceBatch; ++at) {
            if (exists(run, to[at])) warp.store_global16(run.place + to[at].offset, value[at]);
          }
        }
      }
    });
  }

  // A lane has the same words of all units. Where a row begins between two words of the output, its words begin an element earlier
  // in the slice: so do all units' rows, or, `kEach`, every one has to be asked. Elements without a neighbour in their row, or in
  // the slice, leave alone.
  template <bool kTwo, bool kEach, bool kWhole, class Warp>
  CONVT_HOST_DEVICE static void leave_in_words(Warp& warp, const GemmParams& params, const Target& target,
                                               std::int32_t first_word, int slice) {
    using Value = std::conditional_t<kTwo, Pair<kOperand>, Element>;
    constexpr int kElements = kTwo ? 2 : 1;
    const std::int32_t words = kSlice * params.order.phases / kElements;
    // Elements from the beginning of a word of the output.
    const auto behind_word = [](const char* place) {
      return std::int32_t(reinterpret_cast<std::uintptr_t>(place) % sizeof(Value)) / kBytes;
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
        const Word of_all(run.place, all_back, present, is_last);
#pragma unroll 1
        for (std::int32_t first = 0; first < params.order.units; first += kWordBatch) {
          Unit to[kWordBatch];
          Value own[kWordBatch], earlier[kWordBatch] = {};
          load_units(warp, target, first, 1, to);
          load_values(warp, params, first, 1, first_word + word * std::int32_t(sizeof(Value)), own);
          if (kTwo && (kEach || all_back > 0)) {
            const std::int32_t before = word > 0 ? word - 1 : 0;
            load_values(warp, params, first, 1, first_word + before * std::int32_t(sizeof(Value)), earlier);
          }
#pragma unroll
          for (int at = 0; at < kWordBatch; ++at) {
            const bool there = kWhole || exists(run, to[at]);   // no branch: lanes differ
            if constexpr (!kTwo) {
              if (there & (here != 0)) warp.template store_global<Element>(run.place + to[at].offset, own[at]);
            } else if constexpr (kEach) {
              const Word of_one(run.place, behind_word(run.place + to[at].offset), present, is_last);
              of_one.store(warp, there, to[at].offset, own[at], earlier[at]);
            } else {
              of_all.store(warp, there, to[at].offset, own[at], earlier[at]);
            }
          }
        }
      }
    });
  }

  // Two elements that begin `back` before a lane's, and which of those exist: of three, from the one before on.
  struct Word {
    char* place;
    bool moved, both, low, high, last;

    CONVT_HOST_DEVICE Word(char* first, std::int32_t back, int present, int is_last)
        : moved(back > 0), last((is_last & back) != 0) {
      const int pair = present >> (1 - back) & 3;
      both = pair == 3;
      low = pair == 1;
      high = pair == 2;
      place = first - back * kBytes;
    }
    template <class Warp>
    CONVT_HOST_DEVICE void store(Warp& warp, bool there, std::int64_t offset, Pair<kOperand> own,
                                 Pair<kOperand> earlier) const {
      constexpr int kBits = 8 * kBytes;
      const Pair<kOperand> value = moved ? earlier >> kBits | own << kBits : own;
      char* const to = place + offset;
      if (there & both) warp.store_global_pair(to, value);
      if (there & low) warp.template store_global<Element>(to, Element(value));
      if (there & high) warp.template store_global<Element>(to + kBytes, Element(value >> kBits));
      // Its neighbour in the output is nobody's first.
      if (there & last) warp.template store_global<Element>(to + 2 * kBytes, Element(own >> kBits));
    }
  };
};

}  // namespace convt
