#include "launch/gemm_tables.hpp"

#include <algorithm>
#include <map>

namespace convt {
namespace {

using PhaseShifts = std::vector<std::vector<std::int32_t>>;   // [phase], shifts of its taps

PhaseShifts phase_shifts(const Axis& axis, Origin origin) {
  PhaseShifts shifts(axis.stride);
  for (std::int64_t tap = 0; tap < axis.filter; ++tap) {
    const Tap at = tap_of(axis, tap, origin);
    shifts[at.phase].push_back(std::int32_t(at.shift));
  }
  return shifts;
}

// Consecutive ranges of [0, reached.size()) with at most `most` reached entries each.
std::vector<Range> cut(const std::vector<bool>& reached, std::int64_t most) {
  std::vector<Range> ranges;
  std::int64_t begin = 0, count = 0;
  for (std::int64_t at = 0; at < std::int64_t(reached.size()); ++at) {
    if (reached[at] && count == most) {
      ranges.push_back({begin, at});
      begin = at;
      count = 0;
    }
    count += reached[at];
  }
  ranges.push_back({begin, std::int64_t(reached.size())});
  return ranges;
}

using Key = std::array<std::int32_t, kAxes>;

BlockShifts block_of(const Problem& problem, const std::array<PhaseShifts, kAxes>& shifts, Range outer, Range w,
                     std::int32_t block_channels) {
  BlockShifts made;
  made.block.outer_begin = std::int32_t(outer.begin);
  made.block.outer_count = std::int32_t(outer.size());
  made.block.w_begin = std::int32_t(w.begin);
  made.block.w_count = std::int32_t(w.size());
  std::map<Key, std::uint32_t> masks;
  for (std::int64_t phase = outer.begin; phase < outer.end; ++phase) {
    const auto& d = shifts[0][phase / problem.axes[1].stride];
    const auto& h = shifts[1][phase % problem.axes[1].stride];
    for (std::int64_t phase_w = w.begin; phase_w < w.end; ++phase_w) {
      if (d.empty() || h.empty() || shifts[2][phase_w].empty()) {
        made.slots.push_back(-1);
        continue;
      }
      const std::int32_t slot = made.block.slots++;
      made.slots.push_back(std::int16_t(slot));
      made.phases.push_back(std::int32_t(phase * problem.axes[2].stride + phase_w));
      std::uint32_t mask = 0;
      for (std::int32_t tile = slot * block_channels / kMmaRows; tile <= ((slot + 1) * block_channels - 1) / kMmaRows;
           ++tile) {
        mask |= 1u << tile;
      }
      for (std::int32_t x : d) {
        for (std::int32_t y : h) {
          for (std::int32_t z : shifts[2][phase_w]) masks[{x, y, z}] |= mask;
        }
      }
    }
  }
  for (const auto& [key, mask] : masks) made.shifts.push_back({{key[0], key[1], key[2]}, 0, mask, 0});
  return made;
}

// All taps of grad_input: in the order of the phases that they read.
BlockShifts block_of_grad_input(const Problem& problem, std::int32_t block_channels) {
  BlockShifts made;
  made.block.outer_count = made.block.w_count = made.block.slots = 1;
  made.slots = {0};
  made.phases = {0};
  const std::uint32_t mask = 0xffffffffu >> (32 - ceil_div(block_channels, kMmaRows));
  const auto& [along_d, along_h, along_w] = problem.axes;
  for (std::int64_t d = 0; d < along_d.filter; ++d) {
    for (std::int64_t h = 0; h < along_h.filter; ++h) {
      for (std::int64_t w = 0; w < along_w.filter; ++w) {
        const Tap at[kAxes] = {tap_of(along_d, d, Origin::padded), tap_of(along_h, h, Origin::padded),
                               tap_of(along_w, w, Origin::padded)};
        const std::int64_t phase = (at[0].phase * along_h.stride + at[1].phase) * along_w.stride + at[2].phase;
        made.shifts.push_back({{std::int32_t(-at[0].shift), std::int32_t(-at[1].shift), std::int32_t(-at[2].shift)},
                               0,
                               mask,
                               std::int32_t(phase)});
      }
    }
  }
  std::stable_sort(made.shifts.begin(), made.shifts.end(),
                   [](const ShiftRecord& a, const ShiftRecord& b) { return a.phase < b.phase; });
  return made;
}

using Shifts = std::vector<ShiftRecord>;
using ShiftAt = Shifts::iterator;

std::vector<std::int32_t> w_phases_of(ShiftAt begin, ShiftAt end, std::int64_t w_stride) {
  std::vector<std::int32_t> phases;
  for (ShiftAt at = begin; at != end; ++at) phases.push_back(std::int32_t(at->phase % w_stride));
  std::sort(phases.begin(), phases.end());
  phases.erase(std::unique(phases.begin(), phases.end()), phases.end());
  return phases;
}

PatchSpan span_of(ShiftAt begin, ShiftAt end, std::int64_t w_stride) {
  PatchSpan span;
  for (int axis = 0; axis < kAxes; ++axis) {
    const auto [low, high] = std::minmax_element(
        begin, end, [&](const ShiftRecord& a, const ShiftRecord& b) { return a.shift[axis] < b.shift[axis]; });
    span.low[axis] = low->shift[axis];
    span.high[axis] = high->shift[axis];
  }
  span.w_phases = std::int32_t(w_phases_of(begin, end, w_stride).size());
  return span;
}

// Ends of the runs of shifts that read the same D and H phase; they are sorted by their phases.
ShiftAt same_outer_phase(ShiftAt begin, ShiftAt end, std::int64_t w_stride) {
  return std::find_if(begin, end,
                      [&](const ShiftRecord& at) { return at.phase / w_stride != begin->phase / w_stride; });
}

void measure(const GemmShape& shape, BlockShifts& made) {
  const std::int64_t w_stride = shape.problem.axes[2].stride;
  made.block.steps = std::int32_t(made.shifts.size());
  for (const ShiftRecord& record : made.shifts) made.row_tiles += __builtin_popcount(record.row_mask);
  for (ShiftAt at = made.shifts.begin(); at != made.shifts.end();) {
    const ShiftAt end = same_outer_phase(at, made.shifts.end(), w_stride);
    made.spans.push_back(span_of(at, end, w_stride));
    at = end;
  }
}

// The phase of the input that a shift reads along D or H, and that of the patch's first pixel.
std::int32_t input_offset(const GemmShape& shape, std::int32_t phase, int axis) {
  if (shape.op == Operator::forward) return 0;
  const auto& axes = shape.problem.axes;
  for (int inner = kAxes - 1; inner > axis; --inner) phase /= std::int32_t(axes[inner].stride);
  return phase % std::int32_t(axes[axis].stride) - std::int32_t(axes[axis].padding);
}

}  // namespace

std::int64_t plane_pixels(const GemmShape& geometry, const PatchShape& patch, int planes, std::int64_t capacity) {
  if (!geometry.gathers_along_channels() || planes == 0) return patch.pixels;
  const std::int64_t odd = planes == 8 ? 1 : 2;
  const std::int64_t padded = patch.pixels + (8 + odd - patch.pixels % 8) % 8;
  return padded <= capacity ? padded : patch.pixels;
}

namespace {

struct Limits {
  std::int64_t pixels, shifts;   // of a group
  int planes;                    // of a patch
};

bool split(const GemmShape& geometry, ShiftAt first, ShiftAt begin, ShiftAt end, const TileBox& box,
           const Limits& limits, std::vector<PatchGroup>& groups) {
  const std::int64_t w_stride = geometry.problem.axes[2].stride;
  const auto halves = [&](ShiftAt middle) {
    return split(geometry, first, begin, middle, box, limits, groups) &&
           split(geometry, first, middle, end, box, limits, groups);
  };
  if (const ShiftAt other = same_outer_phase(begin, end, w_stride); other != end) return halves(other);
  if (const std::int64_t count = end - begin; count > limits.shifts) {
    const std::int64_t parts = ceil_div(count, limits.shifts);
    return halves(begin + count * (parts / 2) / parts);
  }
  const PatchSpan span = span_of(begin, end, w_stride);
  const auto& [low, high, w_count] = span;
  const PatchShape shape = patch_shape(box, span);
  const std::int64_t pixels = plane_pixels(geometry, shape, limits.planes, limits.pixels);
  if (pixels <= limits.pixels) {
    PatchGroup made{{}, w_phases_of(begin, end, w_stride)};
    ShiftGroup& group = made.group;
    std::copy(std::begin(high), std::end(high), group.high);
    // The phase of the first W phase; the others are told from there.
    const std::int32_t corner = begin->phase - begin->phase % std::int32_t(w_stride) + made.w_phases[0];
    for (int axis = 0; axis < kAxes; ++axis) group.offset[axis] = input_offset(geometry, corner, axis);
    std::copy(std::begin(shape.extent), std::end(shape.extent), group.extent);
    std::copy(std::begin(shape.pitch), std::end(shape.pitch), group.pitch);
    group.pixels = std::int32_t(pixels);
    for (int axis = 0; axis < kAxes; ++axis) group.by_pitch[axis] = FastDivisor(group.pitch[axis]);
    group.first_shift = group.first_step = std::int32_t(begin - first);
    group.shifts = std::int32_t(end - begin);
    for (ShiftAt at = begin; at != end; ++at) {
      const auto own = std::lower_bound(made.w_phases.begin(), made.w_phases.end(), at->phase % w_stride);
      at->pixel_offset = std::int32_t(own - made.w_phases.begin()) * group.extent[3];
      for (int axis = 0; axis < kAxes; ++axis) {
        at->pixel_offset += (high[axis] - at->shift[axis]) * group.pitch[1 + axis];
      }
    }
    const std::int32_t corner_w = made.w_phases[0];
    for (std::int32_t& phase : made.w_phases) phase -= corner_w;
    groups.push_back(std::move(made));
    return true;
  }
  if (box.packed) return false;
  // Phases share nothing but the cache lines that they lie in.
  if (w_count > 1) {
    const std::int32_t middle = w_phases_of(begin, end, w_stride)[w_count / 2];
    return halves(std::find_if(begin, end, [&](const ShiftRecord& at) { return at.phase % w_stride >= middle; }));
  }
  // Halve the axis whose halo costs most.
  int widest = -1;
  double share = 0;
  for (int axis = 0; axis < kAxes; ++axis) {
    const double halo = double(high[axis] - low[axis]) / box.tile[1 + axis];
    if (halo > share) {
      share = halo;
      widest = axis;
    }
  }
  if (widest < 0) return false;
  const std::int32_t middle = low[widest] + (high[widest] - low[widest]) / 2;
  const std::int32_t along = widest;
  return halves(std::stable_partition(begin, end, [=](const ShiftRecord& at) { return at.shift[along] <= middle; }));
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

std::vector<BlockShifts> block_shifts(const GemmShape& shape, const Origins& origin, std::int32_t rows,
                                      std::int32_t block_channels) {
  const Problem& problem = shape.problem;
  if (shape.op == Operator::grad_input) {
    std::vector<BlockShifts> blocks = {block_of_grad_input(problem, block_channels)};
    measure(shape, blocks[0]);
    return blocks;
  }
  std::array<PhaseShifts, kAxes> shifts;
  for (int axis = 0; axis < kAxes; ++axis) shifts[axis] = phase_shifts(problem.axes[axis], origin[axis]);
  const std::int64_t most = rows / block_channels;
  std::vector<bool> reached_w, reached_outer;
  for (const auto& phase : shifts[2]) reached_w.push_back(!phase.empty());
  for (const auto& d : shifts[0]) {
    for (const auto& h : shifts[1]) reached_outer.push_back(!d.empty() && !h.empty());
  }
  const std::int64_t wide = std::count(reached_w.begin(), reached_w.end(), true);
  const std::int64_t per_block = std::max<std::int64_t>(1, most / wide);
  const std::int64_t outer = std::count(reached_outer.begin(), reached_outer.end(), true);
  const std::int64_t even = ceil_div(outer, ceil_div(outer, per_block));   // blocks of equal size
  std::vector<BlockShifts> blocks;
  for (const Range& range : cut(reached_outer, even)) {
    for (const Range& w : cut(reached_w, ceil_div(wide, ceil_div(wide, most)))) {
      blocks.push_back(block_of(problem, shifts, range, w, block_channels));
      measure(shape, blocks.back());
    }
  }
  return blocks;
}

namespace {

std::vector<std::int32_t> extents(std::int64_t count, std::int64_t most) {
  std::vector<std::int32_t> made;
  const auto add = [&](std::int64_t extent) {
    if (extent >= 1 && extent <= std::min(count, most)) made.push_back(std::int32_t(extent));
  };
  const std::int64_t fewest = ceil_div(count, most);
  for (std::int64_t tiles = fewest; tiles < fewest + 5; ++tiles) add(ceil_div(count, tiles));
  for (std::int64_t extent = 8; extent <= most; extent *= 2) add(extent);
  add(1);
  std::sort(made.begin(), made.end());
  made.erase(std::unique(made.begin(), made.end()), made.end());
  return made;
}

}  // namespace

std::vector<TileBox> boxes(std::int32_t pixels, const std::int64_t (&q)[kTileAxes]) {
  std::vector<TileBox> made;
  for (std::int32_t w : extents(q[3], pixels)) {
    for (std::int32_t h : extents(q[2], pixels / w)) {
      for (std::int32_t d : extents(q[1], pixels / (w * h))) {
        const std::int64_t most = pixels / (std::int64_t(w) * h * d);
        const std::int64_t n = std::min(q[0], most);
        const TileBox box{{std::int32_t(ceil_div(q[0], ceil_div(q[0], n))), d, h, w}};
        if (box.positions() * 2 >= std::min<std::int64_t>(pixels, q[0] * q[1] * q[2] * q[3])) made.push_back(box);
      }
    }
  }
  return made;
}

namespace {

// Boxes whose positions lie in one run of `pixels` neighbouring pixels.
std::vector<TileBox> run_boxes(std::int32_t pixels, const std::int64_t (&q)[kTileAxes], TileBox box) {
  const std::int64_t phases = box.w_phases;
  std::vector<TileBox> made;
  // Along W: as the run's pixels are shared by 1, 2, ... rows; then as many rows, slabs and images as fit.
  std::int64_t previous = 0;
  for (std::int64_t rows = 1; rows <= pixels; ++rows) {
    const std::int64_t pitch = (pixels + box.halo[2]) / rows / (box.even * phases) * (box.even * phases);
    const std::int64_t most = rows == 1 ? pixels : pitch / phases - box.halo[2];
    if (most < 1) break;
    const std::int64_t w = ceil_div(q[3], ceil_div(q[3], std::min(q[3], most)));
    if (w == previous) continue;
    previous = w;
    const std::int64_t row = round_up((w + box.halo[2]) * phases, box.even);
    const std::int64_t rows_fit = (pixels - w) / row + 1;
    std::int64_t last_h = 0;
    for (std::int64_t h_most = std::min(q[2], rows_fit); h_most >= 1;
         h_most = h_most > 4 ? h_most * 3 / 4 : h_most - 1) {
      const std::int64_t h = ceil_div(q[2], ceil_div(q[2], h_most));
      if (h == last_h) continue;
      last_h = h;
      const std::int64_t slab = row * (h + box.halo[1]), used = (h - 1) * row + w;
      const std::int64_t d_fit = std::min(q[1], (pixels - used) / slab + 1);
      const std::int64_t d = ceil_div(q[1], ceil_div(q[1], d_fit));
      const std::int64_t image = slab * (d + box.halo[0]), all = (d - 1) * slab + used;
      const std::int64_t n_fit = std::min(q[0], (pixels - all) / image + 1);
      box.tile[0] = std::int32_t(ceil_div(q[0], ceil_div(q[0], n_fit)));
      box.tile[1] = std::int32_t(d);
      box.tile[2] = std::int32_t(h);
      box.tile[3] = std::int32_t(w);
      made.push_back(box);
    }
  }
  return made;
}

}  // namespace

std::vector<TileBox> packed_boxes(std::int32_t pixels, const std::int64_t (&q)[kTileAxes],
                                  const std::vector<BlockShifts>& blocks, std::int32_t even) {
  TileBox box{{1, 1, 1, 1}, true};
  box.even = even;
  for (const BlockShifts& block : blocks) {
    for (const PatchSpan& span : block.spans) {
      for (int axis = 0; axis < kAxes; ++axis) {
        box.halo[axis] = std::max(box.halo[axis], span.high[axis] - span.low[axis]);
      }
      box.w_phases = std::max(box.w_phases, span.w_phases);
    }
  }
  std::vector<TileBox> made;
  for (box.run = pixels; box.run >= kGroupPixels; box.run /= 2) {
    const std::int32_t runs = pixels / box.run;
    for (const TileBox& of_run : run_boxes(box.run, q, box)) {
      // As many side by side along one outer axis, or half of them along two. Further out a run has no second position: the whole
      // tile's rows would lie between.
      for (int axis = 0; axis < kTileAxes - 1; ++axis) {
        for (int other = axis; other < (runs == 4 ? kTileAxes - 1 : axis + 1); ++other) {
          TileBox whole = of_run;
          whole.runs[axis] *= other == axis ? runs : 2;
          whole.runs[other] *= other == axis ? 1 : 2;
          bool wanted = true;
          for (int at = 0; at <= other && runs > 1; ++at) {
            if (at < other) whole.tile[at] = 1;
            wanted = wanted && (whole.runs[at] == 1 || whole.tile[at] * (whole.runs[at] - 1) < q[at]);
            whole.tile[at] *= whole.runs[at];
          }
          if (wanted) made.push_back(whole);
        }
        if (runs == 1) break;
      }
    }
  }
  return made;
}

PatchShape patch_shape(const TileBox& box, const PatchSpan& span) {
  PatchShape shape{};
  shape.conflicts = 1;
  shape.extent[0] = box.tile[0];
  for (int axis = 0; axis < kAxes; ++axis)
    shape.extent[1 + axis] = box.tile[1 + axis] + (box.packed ? box.halo[axis] : span.high[axis] - span.low[axis]);
  if (box.packed) {
    shape.pitch[3] = 1;
    shape.pitch[2] = std::int32_t(round_up(shape.extent[3] * box.w_phases, box.even));
    shape.pitch[1] = shape.pitch[2] * shape.extent[2];
    shape.pitch[0] = shape.pitch[1] * shape.extent[1];
    shape.pixels = std::int64_t(shape.pitch[0]) * shape.extent[0];
    return shape;
  }
  const auto lay = [&](bool padded) {
    std::int64_t pitch = 1, positions = 1, outside = box.positions();
    for (int axis = kTileAxes - 1; axis >= 0; --axis) {
      shape.pitch[axis] = std::int32_t(pitch);
      pitch *= shape.extent[axis] * (axis == kTileAxes - 1 ? span.w_phases : 1);
      positions *= box.tile[axis];
      outside /= box.tile[axis];
      // Eight positions in a row hit eight banks when a new row goes on where the last one stopped, modulo 8.
      if (outside > 1 && positions % 8 != 0 && pitch % 8 != positions % 8) {
        if (padded) {
          pitch += (positions % 8 - pitch % 8 + 8) % 8;
        } else {
          shape.conflicts = 1.4;
        }
      }
    }
    return pitch;
  };
  const std::int64_t plain = lay(false);
  const double conflicts = shape.conflicts;
  shape.conflicts = 1;
  shape.pixels = lay(true);
  if (double(shape.pixels) > 1.25 * double(plain)) {
    shape.pixels = lay(false);
    shape.conflicts = conflicts;
  }
  return shape;
}

std::vector<PatchGroup> group_shifts(const GemmShape& shape, BlockShifts& block, const TileBox& box,
                                     std::int64_t capacity, int planes, std::int64_t most_shifts) {
  std::vector<PatchGroup> groups;
  const ShiftAt begin = block.shifts.begin(), end = block.shifts.end();
  if (begin != end && !split(shape, begin, begin, end, box, {capacity, most_shifts, planes}, groups)) groups.clear();
  return groups;
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
                       std::int64_t capacity, int planes, const Leaving& leaving) {
  GemmTables tables;
  std::vector<PhaseBlock> phase_blocks;
  std::vector<ShiftGroup> groups;
  std::vector<ShiftRecord> shifts;
  std::vector<std::int32_t> phases, rows;
  std::vector<std::int16_t> slots;
  for (BlockShifts& made : blocks) {
    std::vector<PatchGroup> own = group_shifts(shape, made, box, capacity, planes);
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
