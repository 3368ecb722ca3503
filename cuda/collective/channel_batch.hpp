#pragma once

#include "arch/lanes.hpp"
#include "arch/tf32.hpp"
#include "config/tile_config.hpp"

// A batch is what a thread has in flight at a time: some channels of one pixel, from anywhere in memory to 16-byte vectors of
// channels in shared memory.
namespace convt {

// Fetches channels `channel_bytes` apart into words: one word each, or, when they are contiguous and whole vectors, packed. Of
// them `left` exist; the others keep what `word` holds.
template <Operand kOperand, class Warp, int kChannels>
CONVT_HOST_DEVICE inline void gather_batch(Warp& warp, std::uint32_t (&word)[kChannels], const char* source,
                                           std::int64_t channel_bytes, std::int32_t left, bool vectors) {
  constexpr int vector = operand_vector(kOperand);
  const auto element = [&warp](const char* from) -> std::uint32_t {
    if constexpr (operand_bytes(kOperand) == 4) {
      return warp.template global<std::uint32_t>(from);
    } else {
      return warp.template global<std::uint16_t>(from);
    }
  };
  if (vectors) {
#pragma unroll
    for (int plane = 0; plane < kChannels / vector; ++plane) {
      if (plane * vector >= left) break;
      const Vector16 loaded = warp.template global<Vector16>(source + plane * 16);
#pragma unroll
      for (int at = 0; at < 4; ++at) word[plane * 4 + at] = loaded.word[at];
    }
  } else if (left >= kChannels) {
#pragma unroll
    for (int at = 0; at < kChannels; ++at, source += channel_bytes) word[at] = element(source);
  } else {
#pragma unroll
    for (int at = 0; at < kChannels; ++at, source += channel_bytes) {
      if (at < left) word[at] = element(source);
    }
  }
}

// 16 bytes of channels from a batch, rounded to TF32 where that is the operand.
template <Operand kOperand, int kChannels>
CONVT_HOST_DEVICE inline Vector16 pack_plane(const std::uint32_t (&word)[kChannels], int plane, bool vectors) {
  Vector16 packed;
#pragma unroll
  for (int at = 0; at < 4; ++at) {
    if constexpr (kOperand == Operand::tf32) {
      packed.word[at] = nearest_tf32_operand(word[plane * 4 + at]);
    } else if constexpr (kOperand == Operand::ieee) {
      packed.word[at] = word[plane * 4 + at];
    } else {
      const int gathered = plane * 8 + 2 * at;
      packed.word[at] = vectors ? word[plane * 4 + at] : word[gathered] | word[gathered + 1] << 16;
    }
  }
  return packed;
}

}  // namespace convt
