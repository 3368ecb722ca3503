#pragma once

#include "arch/lanes.hpp"
#include "arch/tf32.hpp"
#include "kernel/pack_params.hpp"

namespace convt {

// Sorts the filter into the order of its use, rounded or split as the operand wants it: [conv group][channel block][phase block]
// [shift group][chunk][shift]{[copy][plane][row][16 B], header}. Missing taps, channels and rows are 0.
struct PackFilter {
  static constexpr int kThreads = 256, kMinBlocks = 4;   // of a multiprocessor
  static constexpr int kMostShared = 47 << 10;   // bytes: what no kernel has to ask for

  // What a thread block has of every job.
  struct Share {
    std::int32_t first_channel, channels;   // of a channel block
    std::int32_t first_step, steps;
    std::int32_t first_job;
  };
  CONVT_HOST_DEVICE static Share share_of(const PackParams& params, std::int32_t block) {
    const std::int32_t job = params.by_shares.quotient(block), share = params.by_shares.remainder(block, job);
    const std::int32_t range = params.by_pieces.quotient(share), piece = params.by_pieces.remainder(share, range);
    const std::int32_t channel = piece * params.piece_channels, step = range * params.range_steps;
    return {channel, min_of(params.piece_channels, params.block_channels - channel), step,
            min_of(params.range_steps, params.steps - step), job};
  }

  struct Job {
    Vector16* packed;           // of its conv group and channel block
    const char* source;         // the filter's first element that it reads
    std::int32_t channel;       // of the conv group, its first
    std::int32_t chunk, plane;  // of the chunk, its first
    std::int32_t first;         // channel of the reduction
  };
  CONVT_HOST_DEVICE static Job job_of(const PackParams& params, const Share& share, std::int32_t job) {
    Job at;
    const std::int32_t outer = params.by_job_planes.quotient(job), block = params.by_chunks.quotient(outer);
    const std::int32_t group = params.by_channel_blocks.quotient(block);
    at.plane = params.by_job_planes.remainder(job, outer) << params.job_planes_log2;
    at.chunk = params.by_chunks.remainder(outer, block);
    at.packed = reinterpret_cast<Vector16*>(params.packed) +
                std::int64_t(block) * params.steps * params.chunks * params.slab_vectors;
    at.channel = params.by_channel_blocks.remainder(block, group) * params.block_channels + share.first_channel;
    at.first = (at.chunk * params.planes + at.plane) * params.vector;
    at.source = static_cast<const char*>(params.filter) + group * params.group_stride + at.first * params.strides[0] +
                at.channel * params.strides[1];
    return at;
  }

  // Tabulates what all jobs of a thread block share: its rows, its steps, and which tap a slot reads at each.
  CONVT_HOST_DEVICE static void tabulate(const PackParams& params, const char* tables, const Share& share, int thread,
                                         char* shared) {
    const auto mine = [&](std::int32_t row) {
      return std::uint32_t(params.at_row(row).channel - share.first_channel) < std::uint32_t(share.channels);
    };
    auto* const rows = reinterpret_cast<PackRow*>(shared + params.shared.rows + 16);
#pragma unroll 1
    for (std::int32_t row = thread; row < params.rows; row += kThreads) {
      std::int32_t place = params.pieces == 1 ? row : 0;
#pragma unroll 1
      for (std::int32_t before = 0; params.pieces > 1 && before < row; ++before) place += mine(before);
      if (mine(row)) rows[place] = params.at_row(row);
      if (row + 1 == params.rows) *reinterpret_cast<std::int32_t*>(shared + params.shared.rows) = place + mine(row);
    }
    auto* const steps = reinterpret_cast<PackStep*>(shared + params.shared.steps);
    auto* const taps = reinterpret_cast<std::int64_t*>(shared + params.shared.taps);
    // From behind: where there is little to do, the first threads are busy loading.
#pragma unroll 1
    for (std::int32_t at = kThreads - 1 - thread; at < share.steps * params.slots; at += kThreads) {
      const std::int32_t step = params.by_slots.quotient(at), slot = params.by_slots.remainder(at, step);
      const Place place = place_of(params, tables, share.first_step + step);
      taps[at] = -1;
      if (slot < place.block->slots) {
        const auto* const phases = reinterpret_cast<const std::int32_t*>(tables + params.table.phases);
        taps[at] = tap_of(params, phases[place.block->first_phase + slot], place.shifts[place.shift]);
      }
      if (slot == 0) steps[step] = step_of(params, place);
    }
  }

  // Copies the filter of a job's channels to shared memory.
  CONVT_HOST_DEVICE static void stage(const PackParams& params, const Share& share, const Job& at, int thread,
                                      char* shared) {
    const std::int32_t channels = params.vector << params.job_planes_log2;
    const std::int32_t reduced = min_of(params.in_channels - at.first, channels);
    const std::int32_t rows = min_of(params.out_channels - at.channel, share.channels);
    if (reduced <= 0 || rows <= 0) return;
    const Extents extents{params.staged_pieces, reduced, rows, reduced < channels || rows < params.piece_channels};
    char* const to = shared + params.shared.filter;
    switch (params.width) {
      case 16:
        return copy<Words<4>>(params, extents, at.source, thread, to);
      case 8:
        return copy<Words<2>>(params, extents, at.source, thread, to);
      case 4:
        return copy<Words<1>>(params, extents, at.source, thread, to);
      default:
        return copy<std::uint16_t>(params, extents, at.source, thread, to);
    }
  }

  // Writes a job's units, from what is staged or from the filter itself.
  CONVT_HOST_DEVICE static void write(const PackParams& params, const Share& share, const Job& at, int thread,
                                      char* shared) {
    if (params.staged_levels > 0) {
      write_units(params, share, at, shared + params.shared.filter, Staged{}, thread, shared);
    } else {
      write_units(params, share, at, at.source, Gathered{}, thread, shared);
    }
    if (at.plane > 0 || share.first_channel > 0) return;
#pragma unroll 1
    for (std::int32_t step = thread; step < share.steps; step += kThreads) {
      const PackStep& own = reinterpret_cast<const PackStep*>(shared + params.shared.steps)[step];
      const StepHeader& header = at.chunk + 1 < params.chunks ? own.next : own.last;
      *slab_of(params, at, own,
               params.slab_vectors - 1) = {{std::uint32_t(header.pixel_offset), header.row_mask, 0, 0}};
    }
  }

#ifdef __CUDACC__
  __device__ static void run(const PackParams& params, const char* tables, char* shared) {
    const Share share = share_of(params, blockIdx.x);
    const int thread = threadIdx.x;
    tabulate(params, tables, share, thread, shared);
    for (std::int32_t job = share.first_job; job < params.jobs; job += params.blocks) {
      const Job at = job_of(params, share, job);
      if (params.staged_levels > 0) stage(params, share, at, thread, shared);
      __syncthreads();   // tables and what is staged, before units are written from them
      write(params, share, at, thread, shared);
      __syncthreads();   // and before the next job's takes their place
    }
  }
#endif

 private:
  template <int kWords>
  struct alignas(4 * kWords) Words {
    std::uint32_t word[kWords];
  };

  struct Place {
    const PhaseBlock* block;
    const ShiftGroup* groups;   // of the block
    const ShiftRecord* shifts;
    std::int32_t group, shift;  // of the block; of all shifts
  };

  struct Extents {
    std::int32_t pieces, reduced, rows;   // of a whole job; channels that exist
    bool are_cut;
  };

  CONVT_HOST_DEVICE static Place place_of(const PackParams& params, const char* tables, std::int32_t step) {
    const auto* const blocks = reinterpret_cast<const PhaseBlock*>(tables);
    Place place;
    place.block = blocks + last_not_after(params.phase_blocks, step, blocks);
    step -= place.block->first_step;
    place.groups = reinterpret_cast<const ShiftGroup*>(tables + params.table.groups) + place.block->first_group;
    place.group = last_not_after(place.block->groups, step, place.groups);
    place.shifts = reinterpret_cast<const ShiftRecord*>(tables + params.table.shifts);
    place.shift = place.groups[place.group].first_shift + step - place.groups[place.group].first_step;
    return place;
  }

  CONVT_HOST_DEVICE static PackStep step_of(const PackParams& params, const Place& place) {
    const ShiftGroup& group = place.groups[place.group];
    const std::int32_t own = place.shift - group.first_shift;
    PackStep step;
    step.slab = (place.block->first_step + group.first_step) * params.chunks + own;
    step.per_chunk = group.shifts;
    // What comes next: another shift, the first again in the next chunk, or the next group's first.
    std::int32_t next = place.shift + 1, last = next;
    if (own + 1 == group.shifts) {
      next = last = group.first_shift;
      if (place.group + 1 < place.block->groups) last = place.groups[place.group + 1].first_shift;
    }
    step.next = {place.shifts[next].pixel_offset, place.shifts[next].row_mask};
    step.last = {place.shifts[last].pixel_offset, place.shifts[last].row_mask};
    return step;
  }

  // Bytes from the source's first tap to that of a phase at a shift; -1: there is none.
  CONVT_HOST_DEVICE static std::int64_t tap_of(const PackParams& params, std::int32_t phase, const ShiftRecord& shift) {
    std::int64_t offset = 0;
    std::int32_t part = shift.phase;   // of what is read
#pragma unroll 1
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      const PackAxis& along = params.axes[axis];
      const std::int32_t outer = along.by_phases.quotient(phase), outer_part = along.by_parts.quotient(part);
      const std::int64_t reach = along.reach * shift.shift[axis] +
                                 along.of_phase * along.by_phases.remainder(phase, outer) +
                                 along.of_part * along.by_parts.remainder(part, outer_part) + along.begin;
      const std::int64_t tap = along.dilation == 1 ? reach : reach / along.dilation;
      if (reach < 0 || tap * along.dilation != reach || tap >= along.filter) return -1;
      offset += tap * along.pitch;
      phase = outer;
      part = outer_part;
    }
    return offset;
  }

  // A unit of the slab that a job has of a step.
  CONVT_HOST_DEVICE static Vector16* slab_of(const PackParams& params, const Job& at, const PackStep& step,
                                             std::int32_t unit) {
    const std::int32_t slab = step.slab + at.chunk * step.per_chunk;
    return at.packed + std::int64_t(slab) * params.slab_vectors + unit;
  }

  template <class Piece>
  CONVT_HOST_DEVICE static void copy(const PackParams& params, const Extents& extents, const char* filter, int thread,
                                     char* shared) {
    constexpr int kBatch = 4;   // loads on their way
#pragma unroll 1
    for (std::int32_t first = thread; first < extents.pieces; first += kBatch * kThreads) {
      Piece held[kBatch];
      std::int32_t to[kBatch];
#pragma unroll
      for (int at = 0; at < kBatch; ++at) {
        std::int32_t rest = first + at * kThreads;
        const char* from = filter;
        bool there = rest < extents.pieces;
        to[at] = 0;
#pragma unroll
        for (int which = 0; which < 2 + kAxes; ++which) {
          if (which == params.staged_levels) break;
          const PackLevel& level = params.levels[which];
          const std::int32_t outer = which + 1 < params.staged_levels ? level.by_extent.quotient(rest) : 0;
          const std::int32_t own = level.by_extent.remainder(rest, outer);
          if (extents.are_cut && level.cut != PackLevel::whole) {
            const std::int32_t channels = level.cut == PackLevel::reduced ? extents.reduced : extents.rows;
            there = there && own * level.elements < channels * level.inner;
          }
          from += std::int64_t(own) * level.stride;
          to[at] += own * level.pitch;
          rest = outer;
        }
        held[at] = {};
        if (there) held[at] = *reinterpret_cast<const Piece*>(from);
      }
#pragma unroll
      for (int at = 0; at < kBatch; ++at) {
        if (first + at * kThreads < extents.pieces) store(held[at], shared + to[at]);
      }
    }
  }

  CONVT_HOST_DEVICE static void store(std::uint16_t piece, char* to) { *reinterpret_cast<std::uint16_t*>(to) = piece; }
  // Word by word: a padded pitch is no multiple of more.
  template <int kWords>
  CONVT_HOST_DEVICE static void store(const Words<kWords>& piece, char* to) {
#pragma unroll
    for (int at = 0; at < kWords; ++at) reinterpret_cast<std::uint32_t*>(to)[at] = piece.word[at];
  }

  // Where units are made of what is staged, which has zeros where channels are missing; and where of the filter itself.
  struct Staged {
    CONVT_HOST_DEVICE static constexpr bool has(int, std::int32_t) { return true; }
  };
  struct Gathered {
    CONVT_HOST_DEVICE static constexpr bool has(int element, std::int32_t channels) { return element < channels; }
  };

  template <class Element, class Source>
  CONVT_HOST_DEVICE static Vector16 unit_of(const char* from, std::int64_t pitch, std::int32_t channels, Source) {
    constexpr int kElements = 16 / int(sizeof(Element)), kInWord = 4 / int(sizeof(Element));
    Vector16 made{};
#pragma unroll
    for (int element = 0; element < kElements; ++element) {
      std::uint32_t bits = 0;
      if (Source::has(element, channels)) bits = *reinterpret_cast<const Element*>(from + element * pitch);
      made.word[element / kInWord] |= bits << (element % kInWord * 16);
    }
    return made;
  }

  template <class Source>
  CONVT_HOST_DEVICE static void write_units(const PackParams& params, const Share& share, const Job& at,
                                            const char* base, Source source, int thread, const char* shared) {
    const std::uint32_t count = *reinterpret_cast<const std::uint32_t*>(shared + params.shared.rows);
    const std::int32_t lines = kThreads / count, line = std::uint32_t(thread) / count;   // a thread keeps its row
    if (line >= lines) return;
    const PackRow row = reinterpret_cast<const PackRow*>(shared + params.shared.rows + 16)[thread - line * count];
    const auto* const steps = reinterpret_cast<const PackStep*>(shared + params.shared.steps);
    const auto* const taps = reinterpret_cast<const std::int64_t*>(shared + params.shared.taps) + row.slot;
    const std::int32_t own = row.channel - share.first_channel;
    const bool exists = row.slot < params.slots && at.channel + own < params.out_channels;
    base += own * params.pitches[1];
#pragma unroll 1
    for (std::int32_t unit = line; unit < share.steps << params.job_planes_log2; unit += lines) {
      const std::int32_t step = unit >> params.job_planes_log2, plane = unit - (step << params.job_planes_log2);
      const std::int32_t channel = plane * params.vector, channels = params.in_channels - at.first - channel;
      std::int64_t tap = -1;
      if (exists && channels > 0) tap = taps[step * params.slots];
      const char* const from = base + tap + channel * params.pitches[0];
      Vector16* const to = slab_of(params, at, steps[step], (at.plane + plane) * params.rows + row.row);
      Vector16 high{};
      if (params.vector == 4) {
        Vector16 low{};
        if (tap >= 0) high = unit_of<std::uint32_t>(from, params.pitches[0], channels, source);
        round(params.operand, high, low);
        if (params.operand == Operand::ieee) to[params.planes * params.rows] = low;
      } else if (tap >= 0) {
        high = unit_of<std::uint16_t>(from, params.pitches[0], channels, source);
      }
      *to = high;
    }
  }

  CONVT_HOST_DEVICE static void round(Operand operand, Vector16& high, Vector16& low) {
#pragma unroll
    for (int element = 0; element < 4; ++element) {
      const std::uint32_t bits = high.word[element];
      if (operand == Operand::tf32) {
        high.word[element] = round_to_tf32(bits);
      } else {
        const Tf32Pair pair = split_to_tf32(bits);
        high.word[element] = pair.high;
        low.word[element] = round_to_tf32(pair.low);
      }
    }
  }

  // Index of the last of some tables whose first step is not after `step`.
  template <class Table>
  CONVT_HOST_DEVICE static std::int32_t last_not_after(std::int32_t count, std::int32_t step, const Table* tables) {
    std::int32_t low = 0, high = count;
    while (high - low > 1) {
      const std::int32_t middle = (low + high) / 2;
      (tables[middle].first_step <= step ? low : high) = middle;
    }
    return low;
  }
};

}  // namespace convt
