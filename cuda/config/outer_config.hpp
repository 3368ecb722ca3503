#pragma once

#include "config/tile_config.hpp"
#include "config/weight_config.hpp"

namespace convt {

inline constexpr int kMostBoxes = 4;       // stages of boxes that those who load may be ahead
inline constexpr int kToldBoxes = 64;    // that those who load find at a time, a thread each
inline constexpr int kFragments = 4;       // of the operand in registers: products that a warpgroup has under way

// Which elements of a pixel grid lie side by side in memory.
enum class Innermost : int { pixels, channels };
inline constexpr int kInnermosts = 2;

// One compiled variant of the weight gradient for Hopper. Warpgroups multiply: 64 pairs of a tap and an output channel, from
// registers, by `channels` input channels, from shared memory. The reduction runs over pixels, box by box.
struct OuterConfig {
  int channels;
  int row_tiles;                           // of 64 pairs, per warpgroup
  int groups;                              // warpgroups that multiply
  int steps;                               // MMA steps along the pixels of a box
  int loading;                             // warps that load

  // Tensor cores add up by truncation: no place for ieee.
  CONVT_HOST_DEVICE constexpr bool has(Operand operand) const { return operand != Operand::ieee; }
  CONVT_HOST_DEVICE constexpr int pixels(Operand operand) const {
    return steps * (is_float32(operand) ? 8 : 16);
  }   // of a box
  CONVT_HOST_DEVICE constexpr int rows() const { return kGroupRows * row_tiles * groups; }
  CONVT_HOST_DEVICE constexpr int octets() const { return rows() / kOctet; }   // of pairs
  CONVT_HOST_DEVICE constexpr int warps() const { return 4 * groups; }
  CONVT_HOST_DEVICE constexpr int threads() const { return 32 * warps(); }     // that multiply
  CONVT_HOST_DEVICE constexpr int loaders() const { return 32 * loading; }
  CONVT_HOST_DEVICE constexpr int block_threads() const { return threads() + loaders(); }
  // Registers of a thread that loads, and of one that multiplies: what the others leave, in eights, of those that a thread block is
  // launched with. Whoever asks for more waits forever.
  CONVT_HOST_DEVICE constexpr int loader_registers(Operand operand) const {
    return !is_float32(operand) ? 72 : loading < 8 ? 88 : 80;
  }
  CONVT_HOST_DEVICE constexpr int consumer_registers(Operand operand) const {
    const int launched = 65536 / block_threads() / 8 * 8 * block_threads();
    return (launched - loaders() * loader_registers(operand)) / threads() / 8 * 8;
  }
  // The input's part of a box lies in lines of 128 bytes: an input channel's pixels, or a pixel's channels where these are innermost
  // and tensor cores read them so. The eight vectors of a line change places by its number, as tensor cores have it.
  CONVT_HOST_DEVICE static constexpr bool along_reduction(Operand operand, Innermost inner) {
    return is_float32(operand) || inner == Innermost::pixels;
  }
  CONVT_HOST_DEVICE constexpr int input_lines(Operand operand, Innermost inner) const {
    return along_reduction(operand, inner) ? channels : pixels(operand);
  }
  CONVT_HOST_DEVICE constexpr std::int32_t input_offset(Operand operand, Innermost inner, std::int32_t line,
                                                        std::int32_t vector) const {
    return (vector / 8 * input_lines(operand, inner) + line) * 128 + (vector % 8 ^ line % 8) * 16;
  }
  CONVT_HOST_DEVICE constexpr int input_stage_bytes(Operand operand) const {
    return channels * pixels(operand) * operand_bytes(operand);
  }
  constexpr bool operator==(const OuterConfig&) const = default;
};

}  // namespace convt
