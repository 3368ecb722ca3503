#pragma once

#include "arch/lanes.hpp"
#include "arch/tf32.hpp"
#include "config/tile_config.hpp"

#include <type_traits>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

// 16-bit floating point, as bits: hardware conversions on a GPU, the same roundings (nearest even) on a host.
namespace convt {

CONVT_HOST_DEVICE inline float from_bfloat16(std::uint16_t bits) { return as_float(std::uint32_t(bits) << 16); }

CONVT_HOST_DEVICE inline std::uint16_t to_bfloat16(float value) {
#ifdef __CUDA_ARCH__
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  const std::uint32_t bits = as_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;   // the device's canonical NaN
  return std::uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
#endif
}

CONVT_HOST_DEVICE inline float from_float16(std::uint16_t bits) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(bits));
#else
  return float(__builtin_bit_cast(_Float16, bits));
#endif
}

CONVT_HOST_DEVICE inline std::uint16_t to_float16(float value) {
#ifdef __CUDA_ARCH__
  return __half_as_ushort(__float2half_rn(value));
#else
  return __builtin_bit_cast(std::uint16_t, _Float16(value));
#endif
}

template <Operand kOperand>
CONVT_HOST_DEVICE std::uint16_t narrow(float value) {
  return kOperand == Operand::bfloat16 ? to_bfloat16(value) : to_float16(value);
}
template <Operand kOperand>
CONVT_HOST_DEVICE float widen(std::uint16_t bits) {
  return kOperand == Operand::bfloat16 ? from_bfloat16(bits) : from_float16(bits);
}

// 16 bytes of results, in the type that the tensors have.
template <Operand kOperand>
CONVT_HOST_DEVICE Vector16 pack(const float (&value)[operand_vector(kOperand)]) {
  Vector16 packed;
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    if constexpr (is_float32(kOperand)) {
      packed.word[word] = as_bits(value[word]);
    } else {
      packed.word[word] = narrow<kOperand>(value[2 * word]) | std::uint32_t(narrow<kOperand>(value[2 * word + 1]))
                                                                  << 16;
    }
  }
  return packed;
}

// Two neighbours, stored as one: 8 bytes of float32, 4 of the others.
template <Operand kOperand>
using Pair = std::conditional_t<is_float32(kOperand), std::uint64_t, std::uint32_t>;

template <Operand kOperand>
CONVT_HOST_DEVICE Pair<kOperand> pack_pair(float left, float right) {
  if constexpr (is_float32(kOperand)) {
    return as_bits(left) | std::uint64_t(as_bits(right)) << 32;
  } else {
#ifdef __CUDA_ARCH__
    // In PTX: a pair that is taken apart again would be rounded by two slow instructions.
    std::uint32_t both;
    if constexpr (kOperand == Operand::bfloat16) {
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(right), "f"(left));
    } else {
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(right), "f"(left));
    }
    return both;
#else
    return narrow<kOperand>(left) | std::uint32_t(narrow<kOperand>(right)) << 16;
#endif
  }
}

}  // namespace convt
