#pragma once

#include <cstdint>

// Marks what nvcc compiles for both sides; plain C++ elsewhere.
#ifdef __CUDACC__
#define CONVT_HOST_DEVICE __host__ __device__
#define CONVT_ALWAYS_INLINE __forceinline__
#else
#define CONVT_HOST_DEVICE
#define CONVT_ALWAYS_INLINE inline
#endif

namespace convt {

struct DivMod {
  std::int64_t quotient;
  std::int64_t remainder;
};

// Floor division: remainder in [0, divisor) for any sign of value; divisor > 0.
CONVT_HOST_DEVICE constexpr DivMod floor_divmod(std::int64_t value, std::int64_t divisor) {
  std::int64_t quotient = value / divisor;
  std::int64_t remainder = value - quotient * divisor;
  if (remainder < 0) {
    remainder += divisor;
    --quotient;
  }
  return {quotient, remainder};
}

template <class T>
CONVT_HOST_DEVICE constexpr T min_of(T a, T b) {
  return b < a ? b : a;
}

CONVT_HOST_DEVICE constexpr std::int64_t ceil_div(std::int64_t value, std::int64_t divisor) {
  return -floor_divmod(-value, divisor).quotient;
}

CONVT_HOST_DEVICE constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return ceil_div(value, multiple) * multiple;
}

}  // namespace convt
