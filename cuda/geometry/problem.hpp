#pragma once

#include <array>
#include <cstdint>

#include "geometry/divmod.hpp"

namespace convt {

// Every rank is 3-D: leading axes of a 1-D or 2-D problem have extent 1.
inline constexpr int kAxes = 3;

// One spatial axis of o + padding = stride * i + dilation * tap.
struct Axis {
  std::int64_t input = 1;           // input extent, pixels
  std::int64_t filter = 1;          // number of taps
  std::int64_t stride = 1;
  std::int64_t padding = 0;
  std::int64_t output_padding = 0;
  std::int64_t dilation = 1;

  CONVT_HOST_DEVICE constexpr std::int64_t output() const {
    return (input - 1) * stride - 2 * padding + dilation * (filter - 1) + output_padding + 1;
  }
  constexpr bool operator==(const Axis&) const = default;
};

// Filter layout is PyTorch's: (in_channels, out_channels / groups, D, H, W).
struct Problem {
  std::int64_t batch = 1;
  std::int64_t in_channels = 1;
  std::int64_t out_channels = 1;
  std::int64_t groups = 1;
  std::array<Axis, kAxes> axes{};   // D, H, W

  constexpr std::int64_t group_in_channels() const { return in_channels / groups; }
  constexpr std::int64_t group_out_channels() const { return out_channels / groups; }
  constexpr std::int64_t taps() const { return axes[0].filter * axes[1].filter * axes[2].filter; }
  constexpr std::int64_t input_pixels() const { return axes[0].input * axes[1].input * axes[2].input; }
  constexpr std::int64_t output_pixels() const { return axes[0].output() * axes[1].output() * axes[2].output(); }
  constexpr bool operator==(const Problem&) const = default;
};

}  // namespace convt
