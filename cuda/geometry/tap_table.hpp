#pragma once

#include <numeric>

#include "geometry/problem.hpp"

namespace convt {

// Where the q-grid of an axis starts: o + origin = stride * q + phase.
//   padded:  origin = padding; shift = (dilation * tap) / stride never depends on the padding.
//   aligned: origin = 0;       phase = o mod stride, so the grid is ceil(output / stride) wide.
enum class Origin { padded, aligned };

struct Tap {
  std::int64_t shift;   // the tap reads input pixel i = q - shift
  std::int64_t phase;   // output residue class it contributes to, in [0, stride)
  constexpr bool operator==(const Tap&) const = default;
};

// Output pixel o sits at q-grid coordinate q = i + shift of its phase.
struct QGrid {
  std::int64_t begin;   // first q that holds an output pixel
  std::int64_t count;   // q positions; every output pixel has exactly one (q, phase)
  constexpr bool operator==(const QGrid&) const = default;
};

struct Range {
  std::int64_t begin;
  std::int64_t end;     // exclusive
  CONVT_HOST_DEVICE constexpr std::int64_t size() const { return end > begin ? end - begin : 0; }
  constexpr bool operator==(const Range&) const = default;
};

CONVT_HOST_DEVICE constexpr std::int64_t origin_offset(const Axis& axis, Origin origin) {
  return origin == Origin::padded ? axis.padding : 0;
}

CONVT_HOST_DEVICE constexpr Tap tap_of(const Axis& axis, std::int64_t tap, Origin origin) {
  const DivMod split = floor_divmod(axis.dilation * tap - axis.padding + origin_offset(axis, origin), axis.stride);
  return {split.quotient, split.remainder};
}

CONVT_HOST_DEVICE constexpr QGrid q_grid(const Axis& axis, Origin origin) {
  const std::int64_t offset = origin_offset(axis, origin);
  const std::int64_t first = floor_divmod(offset, axis.stride).quotient;
  const std::int64_t last = floor_divmod(axis.output() - 1 + offset, axis.stride).quotient;
  return {first, last - first + 1};
}

CONVT_HOST_DEVICE constexpr std::int64_t output_of(const Axis& axis, std::int64_t q, std::int64_t phase,
                                                   Origin origin) {
  return axis.stride * q + phase - origin_offset(axis, origin);
}

// q whose output pixel of this phase lies inside [0, output).
CONVT_HOST_DEVICE constexpr Range phase_range(const Axis& axis, std::int64_t phase, Origin origin) {
  const std::int64_t offset = origin_offset(axis, origin) - phase;
  return {ceil_div(offset, axis.stride), floor_divmod(axis.output() - 1 + offset, axis.stride).quotient + 1};
}

// Taps of one phase are this far apart, and consecutive ones move the input by dilation / gcd.
constexpr std::int64_t tap_period(const Axis& axis) { return axis.stride / std::gcd(axis.stride, axis.dilation); }

}  // namespace convt
