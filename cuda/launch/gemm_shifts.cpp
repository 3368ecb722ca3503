#include "launch/gemm_shifts.hpp"

#include <algorithm>
#include <bit>
#include <iterator>

namespace convt {
namespace {
// Of a tap: which pixel it reads, and of which part of the input.
struct Read {
  std::int32_t shift, part;
};
using PhaseShifts = std::vector<std::vector<Read>>;   // [phase]

// Where outputs come together, from o = stride * i + dilation * tap - padding: what is written is step by step of its own phases
// (`along.stride`), what is read of its parts.
PhaseShifts shifts_together(Operator op, const Axis& axis, const GemmShape::Along& along) {
  PhaseShifts shifts(along.stride);
  for (std::int64_t phase = 0; phase < along.stride; ++phase) {
    for (std::int64_t tap = 0; tap < axis.filter; ++tap) {
      const std::int64_t moved = axis.dilation * tap - axis.padding;
      std::int64_t first = axis.stride * phase + moved;  // that the first position reads
      if (op == Operator::forward) {
        const DivMod input = floor_divmod(phase - moved, axis.stride);
        if (input.remainder != 0) continue;
        first = input.quotient;
      }
      const DivMod read = floor_divmod(first, along.step);
      shifts[phase].push_back({std::int32_t(-read.quotient), std::int32_t(read.remainder)});
    }
  }
  return shifts;
}

PhaseShifts phase_shifts(const Axis& axis, Origin origin) {
  PhaseShifts shifts(axis.stride);
  for (std::int64_t tap = 0; tap < axis.filter; ++tap) {
    const Tap at = tap_of(axis, tap, origin);
    shifts[at.phase].push_back({std::int32_t(at.shift), 0});
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

// Sorts shifts, by parts and then D first, and leaves one of those that are alike, for the row tiles of all.
void merge(std::vector<ShiftRecord>& shifts) {
  const auto differ = [](const ShiftRecord& a, const ShiftRecord& b) {
    return std::mismatch(std::begin(a.shift), std::end(a.shift), std::begin(b.shift));
  };
  std::sort(shifts.begin(), shifts.end(), [&](const ShiftRecord& a, const ShiftRecord& b) {
    if (a.phase != b.phase) return a.phase < b.phase;
    const auto [of_a, of_b] = differ(a, b);
    return of_a != std::end(a.shift) && *of_a < *of_b;
  });
  auto last = shifts.begin();
  for (auto at = shifts.begin(); at != shifts.end(); ++at) {
    if (at == last) continue;
    if (last->phase == at->phase && differ(*last, *at).first == std::end(last->shift)) {
      last->row_mask |= at->row_mask;
    } else {
      *++last = *at;
    }
  }
  if (!shifts.empty()) shifts.erase(last + 1, shifts.end());
}

BlockShifts block_of(const GemmShape& shape, const std::array<PhaseShifts, kAxes>& shifts, Range outer, Range w,
                     std::int32_t block_channels) {
  BlockShifts made;
  made.block.outer_begin = std::int32_t(outer.begin);
  made.block.outer_count = std::int32_t(outer.size());
  made.block.w_begin = std::int32_t(w.begin);
  made.block.w_count = std::int32_t(w.size());
  for (std::int64_t phase = outer.begin; phase < outer.end; ++phase) {
    const auto& d = shifts[0][phase / shape.axes[1].stride];
    const auto& h = shifts[1][phase % shape.axes[1].stride];
    for (std::int64_t phase_w = w.begin; phase_w < w.end; ++phase_w) {
      if (d.empty() || h.empty() || shifts[2][phase_w].empty()) {
        made.slots.push_back(-1);
        continue;
      }
      const std::int32_t slot = made.block.slots++;
      made.slots.push_back(std::int16_t(slot));
      made.phases.push_back(std::int32_t(phase * shape.axes[2].stride + phase_w));
      std::uint32_t mask = 0;
      for (std::int32_t tile = slot * block_channels / kMmaRows; tile <= ((slot + 1) * block_channels - 1) / kMmaRows;
           ++tile) {
        mask |= 1u << tile;
      }
      for (const Read& x : d) {
        for (const Read& y : h) {
          for (const Read& z : shifts[2][phase_w]) {
            const std::int64_t part = (x.part * shape.axes[1].step + y.part) * shape.axes[2].step + z.part;
            made.shifts.push_back({{x.shift, y.shift, z.shift}, 0, mask, std::int32_t(part)});
          }
        }
      }
    }
  }
  merge(made.shifts);
  for (const ShiftRecord& record : made.shifts) made.row_tiles += std::popcount(record.row_mask);
  return made;
}

// All taps of grad_input: in the order of the phases that they read.
BlockShifts block_of_grad_input(const Problem& problem, const std::array<PhaseShifts, kAxes>& shifts,
                                std::int32_t block_channels) {
  BlockShifts made;
  made.block.outer_count = made.block.w_count = made.block.slots = 1;
  made.slots = {0};
  made.phases = {0};
  made.shifts.reserve(problem.taps());
  const std::int64_t row_tiles = ceil_div(block_channels, kMmaRows);
  const std::uint32_t mask = 0xffffffffu >> (32 - row_tiles);
  made.row_tiles = row_tiles * problem.taps();
  std::int32_t phase = 0;
  for (const auto& d : shifts[0]) {
    for (const auto& h : shifts[1]) {
      for (const auto& w : shifts[2]) {
        for (const Read& x : d) {
          for (const Read& y : h) {
            for (const Read& z : w) made.shifts.push_back({{-x.shift, -y.shift, -z.shift}, 0, mask, phase});
          }
        }
        ++phase;
      }
    }
  }
  return made;
}

void measure(const GemmShape& shape, WayIn way, BlockShifts& made) {
  made.block.steps = std::int32_t(made.shifts.size());
  made.spans = spans_of(made.shifts, in_lines(way) ? 1 : std::int32_t(shape.axes[2].step));
}

}  // namespace

PatchSpan span_of(ShiftAt first, ShiftAt begin, ShiftAt end) {
  PatchSpan span{{}, {}, 1, std::int32_t(begin - first), std::int32_t(end - begin)};
  std::copy(std::begin(begin->shift), std::end(begin->shift), span.low);
  std::copy(std::begin(begin->shift), std::end(begin->shift), span.high);
  for (ShiftAt at = begin + 1; at < end; ++at) {
    for (int axis = 0; axis < kAxes; ++axis) {
      span.low[axis] = std::min(span.low[axis], at->shift[axis]);
      span.high[axis] = std::max(span.high[axis], at->shift[axis]);
    }
    span.w_phases += at->phase != at[-1].phase;
  }
  return span;
}

std::vector<PatchSpan> spans_of(const std::vector<ShiftRecord>& shifts, std::int32_t w_stride,
                                std::int64_t most_shifts) {
  std::vector<PatchSpan> spans;
  const auto add = [&](const auto& self, ShiftAt begin, ShiftAt end) -> void {
    const std::int64_t count = end - begin, parts = ceil_div(count, most_shifts);
    if (parts > 1) {
      const ShiftAt middle = begin + count * (parts / 2) / parts;
      self(self, begin, middle);
      self(self, middle, end);
    } else {
      spans.push_back(span_of(shifts.begin(), begin, end));
    }
  };
  for (ShiftAt at = shifts.begin(); at != shifts.end();) {
    const std::int32_t outer = at->phase / w_stride;
    const ShiftAt end =
        std::find_if(at, shifts.end(), [&](const ShiftRecord& other) { return other.phase / w_stride != outer; });
    add(add, at, end);
    at = end;
  }
  return spans;
}

std::vector<BlockShifts> block_shifts(const GemmShape& shape, const Origins& origin, std::int32_t rows,
                                      std::int32_t block_channels, WayIn way) {
  const Problem& problem = shape.problem;
  std::array<PhaseShifts, kAxes> shifts;
  const bool together = has_together(shape);
  for (int axis = 0; axis < kAxes; ++axis) {
    shifts[axis] = together ? shifts_together(shape.op, problem.axes[axis], shape.axes[axis])
                            : phase_shifts(problem.axes[axis], origin[axis]);
  }
  if (shape.op == Operator::grad_input && !together) {
    std::vector<BlockShifts> blocks = {block_of_grad_input(problem, shifts, block_channels)};
    measure(shape, way, blocks[0]);
    return blocks;
  }
  const std::int64_t most = rows / block_channels;
  std::vector<bool> reached_w, reached_outer;
  for (const auto& phase : shifts[2]) reached_w.push_back(!phase.empty());
  for (const auto& d : shifts[0]) {
    for (const auto& h : shifts[1]) reached_outer.push_back(!d.empty() && !h.empty());
  }
  const std::int64_t wide = std::count(reached_w.begin(), reached_w.end(), true);
  const std::int64_t per_block = std::max<std::int64_t>(1, most / wide);
  const std::int64_t outer = std::count(reached_outer.begin(), reached_outer.end(), true);
  const std::int64_t even = ceil_div(outer, ceil_div(outer, per_block));  // blocks of equal size
  std::vector<BlockShifts> blocks;
  for (const Range& range : cut(reached_outer, even)) {
    for (const Range& w : cut(reached_w, ceil_div(wide, ceil_div(wide, most)))) {
      blocks.push_back(block_of(shape, shifts, range, w, block_channels));
      measure(shape, way, blocks.back());
    }
  }
  return blocks;
}

}  // namespace convt
