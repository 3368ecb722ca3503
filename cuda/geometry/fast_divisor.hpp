#pragma once

#include <cstdint>

#include "geometry/divmod.hpp"

namespace convt {

// Division of 0 <= value < 2**31 by a divisor that the plan knows: one multiplication and a shift.
struct FastDivisor {
  std::uint32_t divisor = 1;
  std::uint32_t multiplier = 0;   // ceil(2**(32 + shift) / divisor), of a divisor over 1
  std::uint32_t shift = 0;

  constexpr FastDivisor() = default;
  explicit constexpr FastDivisor(std::int64_t by) : divisor(std::uint32_t(by)) {
    if (divisor == 1) return;
    std::uint32_t log2 = 0;
    while ((std::uint64_t(1) << log2) < divisor) ++log2;
    shift = log2 - 1;
    multiplier = std::uint32_t(((std::uint64_t(1) << (31 + log2)) + divisor - 1) / divisor);
  }
  CONVT_HOST_DEVICE constexpr std::int32_t quotient(std::int32_t value) const {
    if (divisor == 1) return value;
    return std::int32_t(std::uint32_t((std::uint64_t(std::uint32_t(value)) * multiplier) >> 32) >> shift);
  }
  CONVT_HOST_DEVICE constexpr std::int32_t remainder(std::int32_t value, std::int32_t of_quotient) const {
    return value - of_quotient * std::int32_t(divisor);
  }
};

}  // namespace convt
