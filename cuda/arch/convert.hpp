#pragma once

#include <cstring>
#include <type_traits>

#include "arch/half.hpp"
#include "geometry/dtype.hpp"

// Storage types and their conversions, the same values on the host and on the device.
namespace convt {

struct Float16 {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

// Calls `visit` with the identity of a dtype's storage type.
template <class Visit>
void with_storage(DType dtype, const Visit& visit) {
  switch (dtype) {
    case DType::float32:
      return visit(std::type_identity<float>{});
    case DType::float64:
      return visit(std::type_identity<double>{});
    case DType::float16:
      return visit(std::type_identity<Float16>{});
    case DType::bfloat16:
      return visit(std::type_identity<BFloat16>{});
  }
}

// What sums are kept in.
template <class S>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class S>
using Accumulator = typename AccumulatorOf<S>::type;

CONVT_HOST_DEVICE inline float widen(float x) { return x; }
CONVT_HOST_DEVICE inline double widen(double x) { return x; }
CONVT_HOST_DEVICE inline float widen(BFloat16 x) { return from_bfloat16(x.bits); }
CONVT_HOST_DEVICE inline float widen(Float16 x) { return from_float16(x.bits); }

// Rounded to nearest even.
template <class S>
CONVT_HOST_DEVICE inline S narrow_to(Accumulator<S> x) {
  if constexpr (sizeof(S) == sizeof(x)) {
    return x;
  } else {
    return {to_bfloat16(x)};
  }
}
template <>
CONVT_HOST_DEVICE inline Float16 narrow_to<Float16>(float x) {
  return {to_float16(x)};
}

// Elements of a storage type in 16 bytes.
template <class S>
inline constexpr int kPacked = 16 / int(sizeof(S));

template <class S>
CONVT_HOST_DEVICE inline void unpack(const Vector16& bits, Accumulator<S> (&to)[kPacked<S>]) {
#pragma unroll
  for (int lane = 0; lane < kPacked<S>; ++lane) {
    if constexpr (sizeof(S) == 8) {
      const std::uint64_t both = std::uint64_t(bits.word[2 * lane + 1]) << 32 | bits.word[2 * lane];
      std::memcpy(&to[lane], &both, sizeof both);
    } else if constexpr (sizeof(S) == 4) {
      to[lane] = as_float(bits.word[lane]);
    } else {
      const std::uint32_t word = bits.word[lane / 2];
      to[lane] = widen(S{std::uint16_t(lane % 2 ? word >> 16 : word & 0xffffu)});
    }
  }
}

template <class S>
CONVT_HOST_DEVICE inline Vector16 pack_as(const Accumulator<S> (&from)[kPacked<S>]) {
  Vector16 bits{};
#pragma unroll
  for (int lane = 0; lane < kPacked<S>; ++lane) {
    if constexpr (sizeof(S) == 8) {
      std::uint64_t both;
      std::memcpy(&both, &from[lane], sizeof both);
      bits.word[2 * lane] = std::uint32_t(both);
      bits.word[2 * lane + 1] = std::uint32_t(both >> 32);
    } else if constexpr (sizeof(S) == 4) {
      bits.word[lane] = as_bits(from[lane]);
    } else {
      bits.word[lane / 2] |= std::uint32_t(narrow_to<S>(from[lane]).bits) << (lane % 2 * 16);
    }
  }
  return bits;
}

}  // namespace convt
