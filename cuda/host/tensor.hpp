#pragma once

#include <cstdint>

namespace convt::host {

enum class DType : int { float32, float64, float16, bfloat16 };
inline constexpr int kDTypes = 4;

// Bytes of an element in memory, and of one in a sum: float64 sums in itself, the rest in float32.
constexpr std::int64_t storage_bytes(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}
constexpr std::int64_t accumulator_bytes(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

// A strided tensor of logical shape (batch, channels, D, H, W); strides in elements, any value (0 for expanded axes).
struct TensorView {
  void* data = nullptr;
  std::int64_t sizes[5] = {1, 1, 1, 1, 1};
  std::int64_t strides[5] = {0, 0, 0, 0, 0};
};

}  // namespace convt::host
