#pragma once

#include "arch/lanes.hpp"
#include "arch/tf32.hpp"
#include "geometry/problem.hpp"

namespace convt {

// Rounds a patch of float32 where it lies in shared memory, by threads from kFirst on: to the nearest TF32, as tensor cores look at it.
template <int kFirst, int kThreads>
struct PatchRounding {
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kTogether = 4;   // vectors on their way through a thread's registers

  template <class Warp>
  CONVT_HOST_DEVICE static void run(Warp& warp, std::int32_t first, std::int32_t bytes) {
    constexpr std::int32_t step = kThreads * 16;
    warp.lanes([&](int lane) {
#pragma unroll 1
      for (std::int32_t at = (warp.thread(lane) - kFirst) * 16; at < bytes; at += kTogether * step) {
        Vector16 vector[kTogether];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          if (at + i * step < bytes) vector[i] = warp.template load<Vector16>(first + at + i * step);
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          for (std::uint32_t& word : vector[i].word) word = nearest_tf32_operand(word);
          if (at + i * step < bytes) warp.template store<Vector16>(first + at + i * step, vector[i]);
        }
      }
    });
  }
};

}  // namespace convt
