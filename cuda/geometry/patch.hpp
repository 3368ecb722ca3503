#pragma once

#include <algorithm>

#include "geometry/tap_table.hpp"

namespace convt {

// Lowest and highest shift over the taps of an axis.
constexpr Range shift_span(const Axis& axis, Origin origin) {
  // dilation * tap grows with the tap and floor division keeps the order.
  return {tap_of(axis, 0, origin).shift, tap_of(axis, axis.filter - 1, origin).shift + 1};
}

// Input pixels that a box of q positions reads, out-of-range ones included: [q.begin - max shift, q.end - min shift).
constexpr Range patch_of(const Axis& axis, Range q, Origin origin) {
  const Range shifts = shift_span(axis, origin);
  return {q.begin - (shifts.end - 1), q.end - shifts.begin};
}

// How many more pixels than q positions a patch has.
constexpr std::int64_t halo(const Axis& axis, Origin origin) { return shift_span(axis, origin).size() - 1; }

// Input pixels a tap multiplies with an output that exists.
constexpr Range tap_input_range(const Axis& axis, std::int64_t tap) {
  const std::int64_t offset = axis.padding - axis.dilation * tap;   // o = stride * i - offset
  const std::int64_t first = ceil_div(offset, axis.stride);
  const std::int64_t last = floor_divmod(axis.output() - 1 + offset, axis.stride).quotient;
  return {std::max<std::int64_t>(first, 0), std::min(last + 1, axis.input)};
}

}  // namespace convt
