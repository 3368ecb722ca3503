#pragma once

#include "geometry/fast_divisor.hpp"
#include "geometry/problem.hpp"

// What the CUDA-core kernels share.
namespace convt {

// Pointers of one call.
struct DirectOperands {
  const void* input;
  const void* filter;
  const void* bias;                  // null: none
  void* output;
};

// Strides in elements: of (batch, channel, D, H, W), and of the filter (in_channel, out_channel of its group, D, H, W).
struct DirectStrides {
  std::int64_t input[2 + kAxes];
  std::int64_t filter[2 + kAxes];
  std::int64_t output[2 + kAxes];
  std::int64_t bias;
};

// The taps of one phase: first, first + period, ... of these many, the first reading pixel q - shift.
struct PhaseTaps {
  std::int64_t first;
  std::int64_t count;
  std::int64_t shift;
};

// What it takes to find them without a table: dilation * tap = phase (mod stride), solved with the inverse of
// dilation / gcd modulo period = stride / gcd.
struct TapSolver {
  std::int64_t stride, dilation, filter;
  std::int64_t gcd, period, inverse;

  CONVT_HOST_DEVICE constexpr PhaseTaps taps_of(std::int64_t phase) const {
    if (stride == 1) return {0, filter, 0};
    if (gcd != 1 && phase % gcd) return {0, 0, 0};
    const std::int64_t first = (phase / gcd) * inverse % period;
    if (first >= filter) return {0, 0, 0};
    return {first, (filter - 1 - first) / period + 1, (dilation * first - phase) / stride};
  }
};

constexpr TapSolver tap_solver(const Axis& axis) {
  TapSolver solver{axis.stride, axis.dilation, axis.filter, 1, 1, 0};
  std::int64_t a = axis.stride, b = axis.dilation;
  while (b) {
    const std::int64_t rest = a % b;
    a = b;
    b = rest;
  }
  solver.gcd = a;
  solver.period = axis.stride / a;
  // Extended Euclid on (dilation / gcd, period).
  std::int64_t r0 = axis.dilation / a % solver.period, r1 = solver.period, x0 = 1, x1 = 0;
  while (r1) {
    const std::int64_t quotient = r0 / r1;
    const std::int64_t r = r0 - quotient * r1, x = x0 - quotient * x1;
    r0 = r1, r1 = r;
    x0 = x1, x1 = x;
  }
  solver.inverse = floor_divmod(x0, solver.period).remainder;
  return solver;
}

}  // namespace convt
