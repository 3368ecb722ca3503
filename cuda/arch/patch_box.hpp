#pragma once

#include <cstdint>

#include "geometry/problem.hpp"

// A patch as one tensor copy fetches it.
namespace convt {

inline constexpr int kBoxAxes = 5;   // channels, W, H, D, N; of rows: W, H, D, channels, N
inline constexpr int kMostBoxExtent = 256;   // elements that a box spans along an axis
inline constexpr int kMostBoxStep = 8;

// Every `step`-th of the elements that a box spans; what lies outside of the tensor is 0.
struct PatchBox {
  const char* base;   // aligned to 16 bytes
  std::int64_t extent[kBoxAxes];
  std::int64_t stride[kBoxAxes];   // bytes: of an element; multiples of 16
  std::int32_t count[kBoxAxes];    // that a box has
  std::int32_t step[kBoxAxes];
  bool lines;   // along the first axis: their vectors change places as in operand_in_lines
  std::int32_t line_bytes() const { return std::int32_t(count[0] * stride[0]); }
  std::int32_t bytes() const { return line_bytes() * count[1] * count[2] * count[3] * count[4]; }
};

// What a kernel is told of it: on a GPU, the copy engine's own description (a CUtensorMap); on a host, where that PatchBox is.
struct alignas(64) PatchCopy {
  unsigned char bytes[128];
  std::int32_t group_channels, group_images;   // from one conv group to the next
};

}  // namespace convt
