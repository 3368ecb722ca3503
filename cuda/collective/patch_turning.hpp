#pragma once

#include "arch/descriptor.hpp"
#include "arch/half.hpp"
#include "arch/lanes.hpp"
#include "arch/tf32.hpp"
#include "config/tile_config.hpp"

namespace convt {

// Turns rows of pixels, channel by channel, as they come from a contiguous tensor ([image][channel][pixel]), to a vector of the
// channels of every pixel, in the pixels' lines. Rounds float32 to the nearest TF32. By threads from kFirst on.
template <Operand kOperand, int kLineBytes, int kFirst, int kThreads>
struct PatchTurning {
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kVector = operand_vector(kOperand);
  static constexpr int kPixels = 4 / operand_bytes(kOperand);   // of a word
  static constexpr int kTogether = 16 / kVector;                // words of every channel on their way through a thread's registers
  // From a thread's word to its next: as far in lines, none of whose vectors has another place then.
  static constexpr std::int32_t kStep = kThreads * 4, kLineStep = kThreads * kPixels * kLineBytes;
  static_assert(kLineStep % (8 * 128) == 0);

  // `pixels` of an image: their rows are whole vectors.
  template <class Warp>
  CONVT_HOST_DEVICE static void run(Warp& warp, std::int32_t from, std::int32_t to, std::int32_t pixels,
                                    std::int32_t images) {
    const std::int32_t row = pixels * operand_bytes(kOperand);
    warp.lanes([&](int lane) {
#pragma unroll 1
      for (std::int32_t image = 0; image < images; ++image) {
        const std::int32_t begin = from + image * kVector * row, end = begin + row;
        std::int32_t at = begin + (warp.thread(lane) - kFirst) * 4;
        std::int32_t line = to + (image * pixels + (warp.thread(lane) - kFirst) * kPixels) * kLineBytes;
#pragma unroll 1
        for (; at + (kTogether - 1) * kStep < end; at += kTogether * kStep, line += kTogether * kLineStep) {
          turn<kTogether>(warp, lane, at, row, line);
        }
#pragma unroll 1
        for (; at < end; at += kStep, line += kLineStep) turn<1>(warp, lane, at, row, line);
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
