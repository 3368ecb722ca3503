#pragma once

#include "arch/patch_box.hpp"
#include "config/tile_config.hpp"
#include "geometry/epilogue.hpp"
#include "geometry/fast_divisor.hpp"
#include "geometry/problem.hpp"

// What a launch of the implicit GEMM is told. All PODs: they travel as kernel parameters, or in the workspace.
//
// The input is what the patch is fetched from, the output what is written. Forward: output pixel = stride * q + phase - origin, and
// the patch is the input itself. grad_input: the output is grad_input, with no phases; the input is grad_output, of which every
// phase is a patch of its own, its pixels `step` apart.
namespace convt {

// The axes of a tile: the batch is one more, without taps.
inline constexpr int kTileAxes = 1 + kAxes;   // N, D, H, W

// One step of the reduction loop: the tile's positions, moved by a shift.
struct ShiftRecord {
  std::int32_t shift[kAxes];  // D, H, W: the tap reads patch pixel q - shift; grad_input has the tap's shift negated
  std::int32_t pixel_offset;  // from a position of the tile to its patch pixel, pixels
  std::uint32_t row_mask;  // bit t: row tile t has a tap at this shift
  std::int32_t phase;  // flattened phase of the input that the tap reads; forward: 0
};

// What a step must know of its shift. It rides behind the filter of the step before.
struct StepHeader {
  std::int32_t pixel_offset;
  std::uint32_t row_mask;
};

// Shifts that share a patch. Whole shift lists are one group unless their patch would be too large; of grad_input, those that read
// the same D and H phase. A row of the patch has its W phases one behind the other.
struct ShiftGroup {
  std::int32_t high[kAxes];  // largest shift: the patch starts at step * (q - high) + offset
  std::int32_t offset[kAxes];  // input pixels
  std::int32_t row;  // byte offset from the tables of the RowPhases, 0: a row has one W phase
  std::int32_t extent[kTileAxes];  // patch extents N, D, H, W, pixels; W: of one phase
  std::int32_t pitch[kTileAxes];  // pixels between neighbours of an axis, bank padding included; W: 1
  std::int32_t pixels;  // extent[0] * pitch[0]
  std::int32_t first_shift;  // index of its first ShiftRecord
  std::int32_t shifts;
  std::int32_t first_step;  // shifts of earlier groups of this block
  FastDivisor by_pitch[kAxes];  // pitch of N, D, H
};

// The row of a patch that has several W phases, pixels of which alternate in memory.
struct RowPhases {
  std::int32_t columns;           // pixels of one phase
  std::int32_t count;             // phases
  FastDivisor by_count;
};                                // then int32 [count]: input pixels beyond the first phase

// The virtual channels of a tile: a range of output phases, empty ones included, times a range of channels.
struct PhaseBlock {
  std::int32_t outer_begin;  // (D phase, H phase), flattened
  std::int32_t outer_count;
  std::int32_t w_begin;  // W phases
  std::int32_t w_count;
  std::int32_t first_slot;  // index into slots: [outer_count][w_count], the row slot of a phase or -1
  std::int32_t slots;  // non-empty phases; row = slot * block_channels + channel
  std::int32_t first_phase;  // index into phases: int32 [slots], the flattened phase of a slot
  std::int32_t first_group;
  std::int32_t groups;
  std::int32_t first_step;  // shifts of earlier blocks
  std::int32_t steps;  // shifts of this block
  std::int32_t lanes_log2;  // threads over which the epilogue spreads channels, log2
  FastDivisor by_piece;  // 16-byte pieces of a tile's output row; output pixels of it when stored along channels
  FastDivisor by_w;  // w_count
};

struct TileAxis {
  std::int64_t input;  // input extent
  std::int64_t output;  // output extent
  std::int64_t q_begin;
  std::int64_t q_count;
  std::int64_t origin;  // o + origin = stride * q + phase
  std::int32_t stride;
  std::int32_t step;  // input pixels between neighbours in a patch
  std::int32_t tile;  // q positions of a tile
  std::int32_t tiles;
  FastDivisor by_tile, by_tiles, by_stride;
  // Of warpgroups: positions between neighbours of a run, and between the first of neighbouring runs, which have so many each.
  std::int32_t pitch, run_pitch;
  FastDivisor by_run;
  CONVT_HOST_DEVICE std::int32_t position(std::int32_t at) const {
    const std::int32_t run = by_run.quotient(at);
    return by_run.remainder(at, run) * pitch + run * run_pitch;
  }
};

// Byte offsets of the tables from the start of the workspace; the packed filter follows them.
struct TableLayout {
  std::int32_t groups;
  std::int32_t shifts;
  std::int32_t phases;
  std::int32_t slots;  // int16
  std::int32_t bytes;  // all tables, rounded up to 256
};

// Offsets in shared memory of a launch.
struct SharedLayout {
  std::int32_t filter;  // [stage][slab]
  std::int32_t patch;  // [stage][plane][pixel][16 B]; of boxes: [stage][pixel][planes of 16 B, which change places]
  std::int32_t patch_stage_bytes;
  std::int32_t pixel_table;  // int32 [pixel], in the order of memory
  std::int32_t place_table;  // int32 [pixel]: where that pixel lies in the patch; 0: in the same order
  std::int32_t exits;  // ExitPair [pixels / 2] of a kernel of warpgroups
  std::int32_t slices;  // [stage][warp that multiplies]: kExitBytes
  std::int32_t slice_stages;
  std::int32_t barriers;  // 8 bytes each
  std::int32_t bytes;
  std::int32_t patch_stages;
  std::int32_t rows;  // [stage][image][channel of a vector][pixel], where rows are turned to lines of a patch
  std::int32_t row_stage_bytes;
  std::int32_t row_stages;
};

// What warps do to a patch between its copy and the products.
enum class PatchWork : std::int32_t { none, round, turn };

// The order of a block's rows. A unit is a channel of an outer phase, with its W phases. Sixteen rows have so many units, one W phase
// of all of them after the other, and rows left over; in the natural order every phase is a unit of its own.
struct RowOrder {
  std::int32_t phases = 1;         // W phases of a unit
  std::int32_t units = kMmaRows;   // of 16 rows
  FastDivisor by_units{kMmaRows}, by_phases{1}, by_channels{1};   // block_channels

  static constexpr std::int32_t kNone = 0x7fffffff;
  struct Place {
    std::int32_t slot, channel;    // kNone: a row left over; channel of the row block
  };
  CONVT_HOST_DEVICE Place at(std::int32_t row) const {
    const std::int32_t within = row % kMmaRows, phase = by_units.quotient(within);
    if (phase >= phases) return {kNone, 0};
    const std::int32_t unit = row / kMmaRows * units + by_units.remainder(within, phase);
    const std::int32_t outer = by_channels.quotient(unit);
    return {outer * phases + phase, by_channels.remainder(unit, outer)};
  }
};

// How sums leave.
enum class WayOut : std::int32_t {
  staged,    // through the pipeline's memory, for all warps to gather pieces of rows or pixels
  singles,   // from those who keep them, one by one: no phases
  pairs,     // the same, neighbours together
  pixels,    // of warpgroups: every warp turns its own so that channels of a pixel leave together
  rows,      // of warpgroups: every warp turns its own so that W phases of a row leave together
};

constexpr const char* name_of(WayOut way) {
  constexpr const char* names[] = {"staged", "singles", "pairs", "pixels", "rows"};
  return names[int(way)];
}

// Two neighbouring positions of a tile, for those who store their sums themselves.
struct ExitPair {
  std::int32_t offset;    // bytes from the output of the tile's first position
  std::int32_t hw, nd;    // digits of the position, 16 bits each
  std::int32_t count;     // of the two that a whole tile has
};

struct GemmParams {
  const void* input;
  const void* bias;  // or null
  void* output;
  const char* tables;  // PhaseBlock[phase_blocks], then as `table` says
  const char*
      filter;  // [conv group][channel block][phase block][shift group][chunk][shift]{[copy][plane][row][16 B], header}
  float* partial;  // [tile][split][accumulator][thread], or null
  std::uint32_t* arrived;  // [tile], zero, or null
  std::int64_t input_strides[2 + kAxes];  // N, C, D, H, W, elements
  std::int64_t output_strides[2 + kAxes];
  std::int64_t bias_stride;
  TileAxis axes[kTileAxes];
  TableLayout table;
  SharedLayout shared;
  std::int32_t in_channels;  // per conv group
  std::int32_t out_channels;  // per conv group
  std::int32_t conv_groups;
  std::int32_t block_channels;  // output channels of a row block
  std::int32_t channel_blocks;
  std::int32_t phase_blocks;
  std::int32_t chunks;  // of in_channels
  std::int32_t steps;  // shifts of all phase blocks
  std::int32_t tiles;  // of a kernel of warpgroups, whose thread blocks take one after the other
  std::int32_t runs[4];  // pixels from the tile's first to the first of every kGroupPixels positions
  FastDivisor by_phase_blocks, by_channel_blocks, by_splits;
  std::int32_t splits;  // of the reduction
  std::int32_t input_vectors;  // 1: channels are contiguous, aligned and whole: 16-byte loads
  std::int32_t output_channels_inner;  // 1: the epilogue stores along channels, 0: along W
  std::int32_t output_vectors;  // 1: 16-byte stores along channels are aligned
  WayOut way_out;
  RowOrder order;
  std::int32_t
      store_bytes;  // widest store that every pixel is aligned for, or every row, wherever it begins: `pixels` and `rows`
  PatchWork patch_work;
  std::int32_t unit_pitch;  // bytes between units in a slice: `rows`
  std::int32_t across_log2;  // lanes along the pieces of a unit
  EpilogueProgram<float> program;
};

inline constexpr std::int32_t kBoxAlignment = 1024;  // of copies in lines, and of others
inline constexpr std::int32_t kRowAlignment = 128;

// `pixels`: of the largest patch; `phases`: of the largest block, empty ones included; `interleaved`: a patch has several W phases,
// which alternate in memory.
constexpr SharedLayout shared_layout(const TileConfig& config, Operand operand, WayIn way, std::int32_t pixels,
                                     std::int32_t phases, bool interleaved, std::int32_t patch_stages = kPatchStages,
                                     std::int32_t row_stages = kRowStages, std::int32_t slice_stages = 0) {
  SharedLayout layout{};
  layout.filter = 0;
  // Vectors of lines change places by their address: copies begin where the pattern does.
  const std::int32_t even = in_lines(way) ? kBoxAlignment : 16;
  layout.patch = round_up(config.filter_stages * config.slab_bytes(operand), even);
  layout.patch_stage_bytes = round_up(config.planes * pixels * 16, even);
  layout.patch_stages = patch_stages;
  layout.rows = layout.patch + patch_stages * layout.patch_stage_bytes;
  layout.row_stage_bytes = round_up(pixels * 16, kRowAlignment);
  layout.row_stages = way == WayIn::rows ? row_stages : 0;
  layout.pixel_table = layout.rows + layout.row_stages * layout.row_stage_bytes;
  layout.place_table = interleaved ? layout.pixel_table + 4 * pixels : 0;
  const std::int32_t pipeline = layout.pixel_table + (interleaved ? 8 : 4) * pixels;
  const std::int32_t staging = config.staging_bytes() + 4 * phases;
  layout.bytes = pipeline > staging ? pipeline : staging;
  if (config.grouped()) {
    layout.exits = (layout.bytes + 15) / 16 * 16;
    layout.slices = layout.exits + config.pixels / 2 * std::int32_t(sizeof(ExitPair));
    layout.slice_stages = slice_stages > 0 ? slice_stages : config.slice_stages(way);
    layout.barriers = layout.slices + layout.slice_stages * config.warps() * kExitBytes;
    layout.bytes = layout.barriers + 8 * config.barriers();
    // Columns that are dropped read up to a tile's pixels beyond the last patch; of lines, those of a product.
    const std::int32_t beyond = config.pixels * 16, lines = kGroupPixels * config.pixel_bytes(WayIn::boxes);
    const std::int32_t read = layout.pixel_table + (in_lines(way) && lines > beyond ? lines : beyond);
    layout.bytes = layout.bytes > read ? layout.bytes : read;
  }
  return layout;
}

}  // namespace convt
