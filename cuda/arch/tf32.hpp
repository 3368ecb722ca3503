#pragma once

#include "geometry/divmod.hpp"

namespace convt {

inline constexpr std::uint32_t kTf32Mask = 0xffffe000u;   // sign, exponent and 10 bits of mantissa

// Bits of a float32 rounded to the nearest TF32, ties away from zero. NaN and infinity stay what they are.
CONVT_HOST_DEVICE inline std::uint32_t round_to_tf32(std::uint32_t bits) {
#ifdef __CUDA_ARCH__
  std::uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
#else
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return finite ? (bits + 0x1000u) & kTf32Mask : bits;
#endif
}

CONVT_HOST_DEVICE inline float as_float(std::uint32_t bits);

// The same for an operand of a tensor core, which looks at no more than a TF32's bits: those below are left as they fall. An
// instruction less than the conversion, which no chip up to sm_90 has in hardware.
CONVT_HOST_DEVICE inline std::uint32_t nearest_tf32_operand(std::uint32_t bits) {
#ifdef __CUDA_ARCH__
  return fabsf(as_float(bits)) < __int_as_float(0x7f800000) ? bits + 0x1000u : bits;
#else
  return (bits & 0x7f800000u) != 0x7f800000u ? bits + 0x1000u : bits;
#endif
}

CONVT_HOST_DEVICE inline float as_float(std::uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

CONVT_HOST_DEVICE inline std::uint32_t as_bits(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  return __builtin_bit_cast(std::uint32_t, value);
#endif
}

// value = high + low exactly: high is the nearest TF32, low has at most 12 bits of mantissa. NaN survives in low; infinity becomes
// NaN there, as do values that round up to it.
struct Tf32Pair {
  std::uint32_t high, low;
};
CONVT_HOST_DEVICE inline Tf32Pair split_to_tf32(std::uint32_t bits) {
  const std::uint32_t high = (bits + 0x1000u) & kTf32Mask;
  return {high, as_bits(as_float(bits) - as_float(high))};
}

}  // namespace convt
