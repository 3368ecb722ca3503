#pragma once

#include "collective/gemm_params.hpp"

// What the packing of a filter is told, and what its thread blocks keep in shared memory.
namespace convt {

// An axis of the filter, where a shift and a phase meet its taps.
struct PackAxis {
  // dilation * tap = reach * shift + of_phase * phase + of_part * part + begin: shifts are negated where outputs are read.
  std::int64_t reach, of_phase, of_part;
  std::int64_t begin;      // padding - origin
  std::int64_t dilation, filter;
  std::int64_t pitch;      // bytes from tap to tap in the source
  FastDivisor by_phases, by_parts;
};

// Elements that lie at one distance from each other both in the filter and in shared memory. They are copied level by level, the
// first piece by piece.
struct PackLevel {
  enum Cut : std::int32_t { whole, reduced, rows };   // whose channels may end before it does: zeros follow
  std::int32_t stride;     // bytes in the filter
  std::int32_t pitch;      // bytes in shared memory
  std::int32_t elements;   // of a piece
  std::int32_t inner;      // elements per channel that is cut
  FastDivisor by_extent;
  Cut cut;
};

// Offsets in shared memory of a thread block that packs.
struct PackShared {
  std::int32_t rows;       // int32, how many rows are its own, and PackRow [rows]
  std::int32_t steps;      // PackStep [range_steps]
  std::int32_t taps;       // int64 [range_steps][slots]: bytes from the source's first tap; -1: none
  std::int32_t filter;     // what is staged
  std::int32_t bytes;
};

struct PackRow {
  std::int32_t row, slot, channel;   // channel of the row block
};

// Where a step's slabs lie, and what their headers announce: the next step of the same chunk or chunks, and of the last chunk.
struct PackStep {
  std::int32_t slab, per_chunk;      // of the first chunk, and slabs from chunk to chunk
  StepHeader next, last;
};

// What packing is told beside the tables. A job is one conv group, channel block, chunk and range of its planes. A thread block does
// jobs one after the other, of each the rows of a piece of the channels, at a range of the steps.
struct PackParams {
  const void* filter;             // any strides
  char* packed;                   // GemmParams::filter
  char* tables;                   // where the tables go: GemmParams::tables
  std::uint32_t* arrived;         // counters to clear, or null
  std::int64_t strides[2];        // of the filter: channels of the reduction, of the rows; bytes
  std::int64_t pitches[2];        // the same of the source: of what is staged, or of the filter
  std::int64_t group_stride;      // between conv groups
  PackAxis axes[kAxes];
  PackLevel levels[2 + kAxes];
  TableLayout table;
  PackShared shared;
  std::int32_t counters;
  std::int32_t in_channels, out_channels;   // per conv group, of the GEMM
  std::int32_t block_channels, channel_blocks, phase_blocks, chunks, steps;
  std::int32_t rows, planes;      // of the tile configuration
  std::int32_t slab_vectors;      // 16-byte units of a slab, its header among them
  std::int32_t vector;            // elements of a unit
  std::int32_t slots;             // of the block that has most
  std::int32_t staged_levels;     // 0: nothing is staged, units are gathered from the filter itself
  std::int32_t staged_pieces;     // of all levels
  std::int32_t width;             // bytes of a piece: 2, 4, 8 or 16
  std::int32_t job_planes_log2, piece_channels, range_steps;
  std::int32_t pieces, ranges, jobs;
  std::int32_t blocks;            // thread blocks of every piece and range
  RowOrder order;
  FastDivisor by_slots, by_shares, by_pieces, by_job_planes, by_chunks, by_channel_blocks;
  Operand operand;

  std::int64_t grid() const { return std::int64_t(blocks) * pieces * ranges; }
  CONVT_HOST_DEVICE PackRow at_row(std::int32_t row) const {
    const RowOrder::Place place = order.at(row);
    return {row, place.slot, place.channel};
  }
};

}  // namespace convt
