#pragma once

#include "arch/descriptor.hpp"
#include "arch/lanes.hpp"
#include "arch/tf32.hpp"
#include "config/tile_config.hpp"
#include "geometry/fast_divisor.hpp"

namespace convt {

// Turns rows of pixels, channel by channel, as they come from a contiguous tensor ([image][channel][pixel]), to a vector of the
// channels of every pixel, in the pixels' lines. Rounds float32 to the nearest TF32. By a team of so many warps.
template <Operand kOperand, int kLineBytes, int kWarps>
struct PatchTurning {
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kVector = operand_vector(kOperand);
  static constexpr int kPixels = 4 / operand_bytes(kOperand);   // of a word
  static constexpr int kTogether = 16 / kVector;  // words of every channel on their way through a thread's registers
  // From a thread's word to its next: as far in lines, none of whose vectors has another place then.
  static constexpr std::int32_t kStep = kThreads * 4, kLineStep = kThreads * kPixels * kLineBytes;
  static_assert(kLineStep % (8 * 128) == 0);

  // `pixels` of an image: their rows are whole vectors. `member`: the warp of its team.
  template <class Warp>
  CONVT_HOST_DEVICE static void run(Warp& warp, std::int32_t member, std::int32_t from, std::int32_t to,
                                    std::int32_t pixels, std::int32_t images, const FastDivisor& by_pixels) {
    const std::int32_t row = pixels * operand_bytes(kOperand), end = images * row / 4;
    warp.lanes([&](int lane) {
      std::int32_t word = member * 32 + lane;
      if (images == 1) {
#pragma unroll 1
        for (; word + (kTogether - 1) * kThreads < end; word += kTogether * kThreads) {
          turn<kTogether>(warp, lane, from + word * 4, row, to + word * (kPixels * kLineBytes));
        }
      }
#pragma unroll 1
      for (; word < end; word += kThreads) {
        const std::int32_t image = images == 1 ? 0 : by_pixels.quotient(word * kPixels);
        turn<1>(warp, lane, from + word * 4 + image * (kVector - 1) * row, row, to + word * (kPixels * kLineBytes));
      }
    });
  }

 private:
  template <int kCount, class Warp>
  CONVT_HOST_DEVICE static void turn(Warp& warp, int lane, std::int32_t at, std::int32_t row, std::int32_t line) {
    std::uint32_t word[kCount][kVector];
#pragma unroll
    for (int channel = 0; channel < kVector; ++channel) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        word[i][channel] = warp.template load<std::uint32_t>(at + channel * row + i * kStep);
      }
    }
    // Of two pixels in a word every other four threads store the second first: they meet in no bank.
    const int first = kPixels == 1 ? 0 : lane / 4 % 2;
#pragma unroll
    for (int turn = 0; turn < kPixels; ++turn) {
      const int pixel = first ^ turn;
      const std::int32_t own = sm90::in_its_line(line + pixel * kLineBytes, kLineBytes);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        Vector16 vector;
#pragma unroll
        for (int at = 0; at < 4; ++at) {
          if constexpr (kPixels == 1) {
            vector.word[at] = nearest_tf32_operand(word[i][at]);
          } else {
            vector.word[at] = halves_of(word[i][2 * at], word[i][2 * at + 1], pixel);
          }
        }
        warp.template store<Vector16>(own + i * kLineStep, vector);
      }
    }
  }
};

}  // namespace convt
