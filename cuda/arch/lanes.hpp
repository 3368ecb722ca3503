#pragma once

#include "geometry/divmod.hpp"

namespace convt {

// A value of every lane of a warp: one on a GPU, where each lane has its own, 32 where a host plays the warp.
template <class T, int kLanes>
struct Lanes {
  T value[kLanes];
  CONVT_HOST_DEVICE T& operator[](int lane) { return value[kLanes == 1 ? 0 : lane]; }
  CONVT_HOST_DEVICE const T& operator[](int lane) const { return value[kLanes == 1 ? 0 : lane]; }
};

// 16 bytes, moved as one.
struct alignas(16) Vector16 {
  std::uint32_t word[4];
};

}  // namespace convt
