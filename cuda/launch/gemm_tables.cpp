#include "launch/gemm_tables.hpp"

#include <algorithm>

namespace convt {
namespace {

using ShiftMove = std::vector<ShiftRecord>::iterator;

// The part of the input that a shift reads along an axis, and so the patch's first pixel.
std::int32_t input_offset(const GemmShape& shape, std::int32_t part, int axis) {
  for (int inner = kAxes - 1; inner > axis; --inner) part /= std::int32_t(shape.axes[inner].step);
  part %= std::int32_t(shape.axes[axis].step);
  const bool padded = shape.op == Operator::grad_input && !has_together(shape);
  return padded ? part - std::int32_t(shape.problem.axes[axis].padding) : part;
}

// Where to halve a span that does not fit: between its W phases, which share nothing but the cache lines that they lie in; then
// along the axis whose halo costs most, reordering the shifts. One of the ends when there is nothing to halve.
ShiftMove middle_of(ShiftMove begin, ShiftMove end, const PatchSpan& span, const TileBox& box) {
  if (span.w_phases > 1) {
    ShiftMove middle = begin;
    for (std::int32_t left = span.w_phases / 2; left > 0; left -= middle->phase != middle[-1].phase) ++middle;
    return middle;
  }
  int widest = 0;
  double share = 0;
  for (int axis = 0; axis < kAxes; ++axis) {
    const double halo = double(span.high[axis] - span.low[axis]) / box.tile[1 + axis];
    if (halo > share) {
      share = halo;
      widest = axis;
    }
  }
  if (share == 0) return begin;
  const std::int32_t middle = span.low[widest] + (span.high[widest] - span.low[widest]) / 2;
  return std::stable_partition(begin, end, [=](const ShiftRecord& at) { return at.shift[widest] <= middle; });
}

// Takes the groups of a span, each with its patch: take(span, patch, pixels). Whether all of them fit.
template <class Take>
bool cut(const GemmShape& shape, std::vector<ShiftRecord>& shifts, const PatchSpan& span, const PatchShape& patch,
         const TileBox& box, const PatchLimits& limits, const Take& take) {
  const std::int64_t pixels = plane_pixels(shape, patch, limits.planes, limits.capacity);
  if (pixels <= limits.capacity) {
    take(span, patch, pixels);
    return true;
  }
  if (box.packed) return false;
  const ShiftMove begin = shifts.begin() + span.first, end = begin + span.shifts;
  const ShiftMove middle = middle_of(begin, end, span, box);
  if (middle == begin) return false;
  const PatchSpan low = span_of(shifts.begin(), begin, middle), high = span_of(shifts.begin(), middle, end);
  return cut(shape, shifts, low, patch_shape(box, low), box, limits, take) &&
         cut(shape, shifts, high, patch_shape(box, high), box, limits, take);
}

// A group of a span, with the pixel offsets of its shifts.
PatchGroup group_of(const GemmShape& geometry, std::vector<ShiftRecord>& shifts, const PatchSpan& span,
                    const PatchShape& patch, std::int64_t pixels) {
  const std::int32_t w_stride = std::int32_t(geometry.axes[2].step);
  const ShiftMove begin = shifts.begin() + span.first, end = begin + span.shifts;
  PatchGroup made;
  ShiftGroup& group = made.group;
  std::copy(std::begin(span.high), std::end(span.high), group.high);
  // The phase of the first W phase; the others are told from there.
  for (int axis = 0; axis < kAxes; ++axis) group.offset[axis] = input_offset(geometry, begin->phase, axis);
  std::copy(std::begin(patch.extent), std::end(patch.extent), group.extent);
  std::copy(std::begin(patch.pitch), std::end(patch.pitch), group.pitch);
  group.pixels = std::int32_t(pixels);
  for (int axis = 0; axis < kAxes; ++axis) group.by_pitch[axis] = FastDivisor(group.pitch[axis]);
  group.first_shift = group.first_step = span.first;
  group.shifts = span.shifts;
  for (ShiftMove at = begin; at != end; ++at) {
    if (const std::int32_t w_phase = (at->phase - begin->phase) % w_stride;
        made.w_phases.empty() || made.w_phases.back() != w_phase) {
      made.w_phases.push_back(w_phase);
    }
    at->pixel_offset = std::int32_t(made.w_phases.size() - 1) * group.extent[3];
    for (int axis = 0; axis < kAxes; ++axis) {
      at->pixel_offset += (span.high[axis] - at->shift[axis]) * group.pitch[1 + axis];
    }
  }
  return made;
}

void leave(PhaseBlock& block, const TileBox& box, const Leaving& leaving) {
  const std::int64_t row = std::int64_t(box.tile[3]) * block.w_count;
  const std::int64_t pieces = leaving.channels_inner ? row : (row + 2 * leaving.vector - 2) / leaving.vector;
  block.by_piece = FastDivisor(pieces);
  block.by_w = FastDivisor(block.w_count);
  // Along W a thread keeps to channels of one alignment. Then enough threads for all, each with a few channels at least.
  std::int64_t lanes = leaving.channels_inner ? 2 : 1, per_lane = leaving.channels_inner ? leaving.vector : 1;
  while (!leaving.channels_inner && lanes < leaving.vector && lanes * leaving.channel_stride % leaving.vector != 0) {
    lanes *= 2;
  }
  const std::int64_t items = pieces * box.tile[0] * box.tile[1] * box.tile[2] * block.outer_count;
  while (leaving.block_channels > 8 * lanes * per_lane &&
         (items * lanes < 2 * leaving.threads || leaving.block_channels > 16 * lanes * per_lane)) {
    lanes *= 2;
  }
  block.lanes_log2 = 0;
  while ((1 << block.lanes_log2) < lanes) ++block.lanes_log2;
}

}  // namespace

std::vector<PatchGroup> group_shifts(const GemmShape& shape, BlockShifts& block, const TileBox& box,
                                     const PatchLimits& limits) {
  std::vector<PatchGroup> groups;
  const auto take = [&](const PatchSpan& span, const PatchShape& patch, std::int64_t pixels) {
    groups.push_back(group_of(shape, block.shifts, span, patch, pixels));
  };
  for (const PatchSpan& span : block.spans) {
    if (!cut(shape, block.shifts, span, patch_shape(box, span), box, limits, take)) return {};
  }
  return groups;
}

std::optional<PatchTotals> patch_totals(const GemmShape& shape, const BlockShifts& block, const TileBox& box,
                                        const PatchLimits& limits) {
  PatchTotals totals;
  std::vector<ShiftRecord> moved;   // by cuts
  const auto take = [&](const PatchSpan& span, const PatchShape& patch, std::int64_t pixels) {
    ++totals.groups;
    totals.pixels += pixels;
    totals.most_pixels = std::max(totals.most_pixels, pixels);
    totals.most_row_pixels = std::max(totals.most_row_pixels, std::int64_t(patch.extent[3]) * span.w_phases);
  };
  for (const PatchSpan& span : block.spans) {
    const PatchShape whole = patch_shape(box, span);
    totals.conflicts = std::max(totals.conflicts, whole.conflicts);
    const bool fits = plane_pixels(shape, whole, limits.planes, limits.capacity) <= limits.capacity;
    if (!fits && moved.empty()) moved = block.shifts;
    if (!cut(shape, moved, span, whole, box, limits, take)) return std::nullopt;
  }
  return totals;
}

std::int32_t add_row(std::vector<std::int32_t>& rows, const PatchGroup& made) {
  if (made.w_phases.size() == 1) return 0;
  const std::int32_t at = std::int32_t(rows.size() * 4 + 1), count = std::int32_t(made.w_phases.size());
  const RowPhases row{made.group.extent[3], count, FastDivisor(count)};
  const auto* words = reinterpret_cast<const std::int32_t*>(&row);
  rows.insert(rows.end(), words, words + sizeof(row) / 4);
  rows.insert(rows.end(), made.w_phases.begin(), made.w_phases.end());
  return at;
}

GemmTables gemm_tables(const GemmShape& shape, std::vector<BlockShifts> blocks, const TileBox& box,
                       const PatchLimits& limits, const Leaving& leaving) {
  GemmTables tables;
  std::vector<PhaseBlock> phase_blocks;
  std::vector<ShiftGroup> groups;
  std::vector<ShiftRecord> shifts;
  std::vector<std::int32_t> phases, rows;
  std::vector<std::int16_t> slots;
  for (BlockShifts& made : blocks) {
    std::vector<PatchGroup> own = group_shifts(shape, made, box, limits);
    PhaseBlock block = made.block;
    block.first_slot = std::int32_t(slots.size());
    block.first_phase = std::int32_t(phases.size());
    block.first_group = std::int32_t(groups.size());
    block.groups = std::int32_t(own.size());
    block.first_step = tables.steps;
    leave(block, box, leaving);
    for (PatchGroup& patch : own) {
      ShiftGroup& group = patch.group;
      group.first_shift += std::int32_t(shifts.size());
      tables.most_pixels = std::max(tables.most_pixels, group.pixels);
      tables.interleaved = tables.interleaved || patch.w_phases.size() > 1;
      group.row = add_row(rows, patch);
      groups.push_back(group);
    }
    tables.steps += block.steps;
    tables.most_phases = std::max(tables.most_phases, block.outer_count * block.w_count);
    phase_blocks.push_back(block);
    shifts.insert(shifts.end(), made.shifts.begin(), made.shifts.end());
    phases.insert(phases.end(), made.phases.begin(), made.phases.end());
    slots.insert(slots.end(), made.slots.begin(), made.slots.end());
  }
  append_table(tables.bytes, phase_blocks);
  const std::int32_t first_row = append_table(tables.bytes, rows);
  for (ShiftGroup& group : groups) group.row = group.row == 0 ? 0 : first_row + group.row - 1;
  tables.layout.groups = append_table(tables.bytes, groups);
  tables.layout.shifts = append_table(tables.bytes, shifts);
  tables.layout.phases = append_table(tables.bytes, phases);
  tables.layout.slots = append_table(tables.bytes, slots);
  tables.bytes.resize((tables.bytes.size() + 255) / 256 * 256);
  tables.layout.bytes = std::int32_t(tables.bytes.size());
  return tables;
}

}  // namespace convt
