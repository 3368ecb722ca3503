#pragma once

#include "arch/lanes.hpp"
#include "arch/tf32.hpp"
#include "config/tile_config.hpp"

// A batch is what a thread has in flight at a time: some channels of one pixel, from anywhere in memory to 16-byte vectors of
// channels in shared memory.
namespace convt {

// Fetches channels `channel_bytes` apart into words: one word each, or, when they are contiguous and whole vectors, packed. Of
// them `left` exist, none where `there` is false; the others are 0. No load stands in a branch: where branches meet, all of a
// batch would have to have arrived.
template <Operand kOperand, class Warp, int kChannels>
CONVT_HOST_DEVICE inline void gather_vectors(Warp& warp, std::uint32_t (&word)[kChannels], const char* source,
                                             std::int32_t left, bool there) {
  constexpr int vector = operand_vector(kOperand);
#pragma unroll
  for (int plane = 0; plane < kChannels / vector; ++plane) {
    const Vector16 loaded = warp.vector_if(there && plane * vector < left, source + plane * 16);
#pragma unroll
    for (int at = 0; at < 4; ++at) word[plane * 4 + at] = loaded.word[at];
  }
}

template <Operand kOperand, class Warp, int kChannels>
CONVT_HOST_DEVICE inline void gather_each(Warp& warp, std::uint32_t (&word)[kChannels], const char* source,
                                          std::int64_t channel_bytes, std::int32_t left, bool there) {
#pragma unroll
  for (int at = 0; at < kChannels; ++at, source += channel_bytes) {
    word[at] = warp.template word_if<operand_bytes(kOperand)>(there && at < left, source);
  }
}

template <Operand kOperand, class Warp, int kChannels>
CONVT_HOST_DEVICE inline void gather_batch(Warp& warp, std::uint32_t (&word)[kChannels], const char* source,
                                           std::int64_t channel_bytes, std::int32_t left, bool there, bool vectors) {
  if (vectors) {
    gather_vectors<kOperand>(warp, word, source, left, there);
  } else if (left >= kChannels) {   // nothing to ask of every channel
    gather_each<kOperand>(warp, word, source, channel_bytes, kChannels, there);
  } else {
    gather_each<kOperand>(warp, word, source, channel_bytes, left, there);
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
