#pragma once

#include "geometry/divmod.hpp"

namespace convt {

enum class DType : int { float32, float64, float16, bfloat16 };
inline constexpr int kDTypes = 4;

constexpr const char* name_of(DType dtype) {
  constexpr const char* names[kDTypes] = {"float32", "float64", "float16", "bfloat16"};
  return names[int(dtype)];
}

// Bytes of an element in memory, and of one in a sum: float64 sums in itself, the rest in float32.
CONVT_HOST_DEVICE constexpr std::int64_t storage_bytes(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}
CONVT_HOST_DEVICE constexpr std::int64_t accumulator_bytes(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

}  // namespace convt
