#pragma once

#include <cstdint>

#include "geometry/dtype.hpp"

namespace convt::host {

using convt::DType;

// A strided tensor of logical shape (batch, channels, D, H, W); strides in elements, any value (0 for expanded axes).
struct TensorView {
  void* data = nullptr;
  std::int64_t sizes[5] = {1, 1, 1, 1, 1};
  std::int64_t strides[5] = {0, 0, 0, 0, 0};
};

}  // namespace convt::host
