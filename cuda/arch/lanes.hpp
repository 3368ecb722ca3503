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

// The first or the second halves of two words, side by side.
CONVT_HOST_DEVICE inline std::uint32_t halves_of(std::uint32_t low, std::uint32_t high, int second) {
#ifdef __CUDA_ARCH__
  return __byte_perm(low, high, second ? 0x7632 : 0x5410);
#else
  return second ? low >> 16 | (high & 0xffff0000u) : (low & 0xffffu) | high << 16;
#endif
}

}  // namespace convt
