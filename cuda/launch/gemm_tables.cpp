#include "launch/gemm_tables.hpp"

#include <algorithm>
#include <cstring>
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
  bool first = true;
  for (const auto& [key, mask] : masks) {
    made.shifts.push_back({{key[0], key[1], key[2]}, 0, mask});
    made.row_tiles += __builtin_popcount(mask);
    for (int axis = 0; axis < kAxes; ++axis) {
      made.low[axis] = first ? key[axis] : std::min(made.low[axis], key[axis]);
      made.high[axis] = first ? key[axis] : std::max(made.high[axis], key[axis]);
    }
    first = false;
  }
  made.block.steps = std::int32_t(made.shifts.size());
  return made;
}

void span_of(const ShiftRecord* begin, const ShiftRecord* end, std::int32_t (&low)[kAxes],
             std::int32_t (&high)[kAxes]) {
  for (int axis = 0; axis < kAxes; ++axis) {
    low[axis] = high[axis] = begin->shift[axis];
    for (const ShiftRecord* at = begin; at != end; ++at) {
      low[axis] = std::min(low[axis], at->shift[axis]);
      high[axis] = std::max(high[axis], at->shift[axis]);
    }
  }
}

bool split(std::vector<ShiftRecord>& shifts, std::size_t begin, std::size_t end, const TileBox& box,
           std::int64_t capacity, std::vector<ShiftGroup>& groups) {
  std::int32_t low[kAxes], high[kAxes];
  span_of(&shifts[begin], &shifts[begin] + (end - begin), low, high);
  const PatchShape shape = patch_shape(box, low, high);
  if (shape.pixels <= capacity) {
    ShiftGroup group{};
    std::copy(std::begin(high), std::end(high), group.high);
    std::copy(std::begin(shape.extent), std::end(shape.extent), group.extent);
    std::copy(std::begin(shape.pitch), std::end(shape.pitch), group.pitch);
    group.pixels = std::int32_t(shape.pixels);
    for (int axis = 0; axis < kAxes; ++axis) group.by_pitch[axis] = FastDivisor(group.pitch[axis]);
    group.first_shift = group.first_step = std::int32_t(begin);
    group.shifts = std::int32_t(end - begin);
    for (std::size_t at = begin; at < end; ++at) {
      ShiftRecord& record = shifts[at];
      record.pixel_offset = 0;
      for (int axis = 0; axis < kAxes; ++axis) {
        record.pixel_offset += (high[axis] - record.shift[axis]) * group.pitch[1 + axis];
      }
    }
    groups.push_back(group);
    return true;
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
  const auto cut = std::stable_partition(shifts.begin() + begin, shifts.begin() + end,
                                         [&](const ShiftRecord& at) { return at.shift[widest] <= middle; });
  const std::size_t at = cut - shifts.begin();
  return split(shifts, begin, at, box, capacity, groups) && split(shifts, at, end, box, capacity, groups);
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

template <class T>
std::int32_t append(std::vector<char>& bytes, const std::vector<T>& table) {
  const std::size_t offset = (bytes.size() + 15) / 16 * 16;
  bytes.resize(offset + table.size() * sizeof(T));
  if (!table.empty()) std::memcpy(bytes.data() + offset, table.data(), table.size() * sizeof(T));
  return std::int32_t(offset);
}

}  // namespace

std::vector<BlockShifts> block_shifts(const Problem& problem, const Origins& origin, std::int32_t rows,
                                      std::int32_t block_channels) {
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
    }
  }
  return blocks;
}

PatchShape patch_shape(const TileBox& box, const std::int32_t (&low)[kAxes], const std::int32_t (&high)[kAxes]) {
  PatchShape shape{};
  shape.conflicts = 1;
  shape.extent[0] = box.tile[0];
  for (int axis = 0; axis < kAxes; ++axis) shape.extent[1 + axis] = box.tile[1 + axis] + high[axis] - low[axis];
  const auto lay = [&](bool padded) {
    std::int64_t pitch = 1, positions = 1, outside = box.positions();
    for (int axis = kTileAxes - 1; axis >= 0; --axis) {
      shape.pitch[axis] = std::int32_t(pitch);
      pitch *= shape.extent[axis];
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

std::vector<ShiftGroup> group_shifts(BlockShifts& block, const TileBox& box, std::int64_t capacity) {
  std::vector<ShiftGroup> groups;
  if (!block.shifts.empty() && !split(block.shifts, 0, block.shifts.size(), box, capacity, groups)) groups.clear();
  return groups;
}

GemmTables gemm_tables(std::vector<BlockShifts> blocks, const TileBox& box, std::int64_t capacity,
                       const Leaving& leaving) {
  GemmTables tables;
  std::vector<PhaseBlock> phase_blocks;
  std::vector<ShiftGroup> groups;
  std::vector<ShiftRecord> shifts;
  std::vector<std::int32_t> phases;
  std::vector<std::int16_t> slots;
  for (BlockShifts& made : blocks) {
    std::vector<ShiftGroup> own = group_shifts(made, box, capacity);
    PhaseBlock block = made.block;
    block.first_slot = std::int32_t(slots.size());
    block.first_phase = std::int32_t(phases.size());
    block.first_group = std::int32_t(groups.size());
    block.groups = std::int32_t(own.size());
    block.first_step = tables.steps;
    leave(block, box, leaving);
    for (ShiftGroup& group : own) {
      group.first_shift += std::int32_t(shifts.size());
      tables.most_pixels = std::max(tables.most_pixels, group.pixels);
    }
    tables.steps += block.steps;
    tables.most_phases = std::max(tables.most_phases, block.outer_count * block.w_count);
    phase_blocks.push_back(block);
    groups.insert(groups.end(), own.begin(), own.end());
    shifts.insert(shifts.end(), made.shifts.begin(), made.shifts.end());
    phases.insert(phases.end(), made.phases.begin(), made.phases.end());
    slots.insert(slots.end(), made.slots.begin(), made.slots.end());
  }
  append(tables.bytes, phase_blocks);
  tables.layout.groups = append(tables.bytes, groups);
  tables.layout.shifts = append(tables.bytes, shifts);
  tables.layout.phases = append(tables.bytes, phases);
  tables.layout.slots = append(tables.bytes, slots);
  tables.bytes.resize((tables.bytes.size() + 255) / 256 * 256);
  tables.layout.bytes = std::int32_t(tables.bytes.size());
  return tables;
}

}  // namespace convt
