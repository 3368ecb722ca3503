#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "host/tensor.hpp"

namespace convt::binding {

inline constexpr int kMaxRank = 5;

// What a torch tensor says of itself, without a torch header.
struct TorchTensor {
  void* data = nullptr;
  enum class Place : int { cpu, cuda, elsewhere } device_type = Place::elsewhere;
  int device_index = 0;
  bool supported_dtype = false;     // one of host::DType
  host::DType dtype = host::DType::float32;
  int rank = 0;
  std::int64_t sizes[kMaxRank] = {};
  std::int64_t strides[kMaxRank] = {};

  bool on_cpu() const { return device_type == Place::cpu; }
  bool on_cuda() const { return device_type == Place::cuda; }
  void place(Place type, int index) {
    device_type = type;
    device_index = index;
  }
  std::int64_t elements() const {
    std::int64_t count = 1;
    for (int axis = 0; axis < rank; ++axis) count *= sizes[axis];
    return count;
  }
};

// Through torch's DLPack exchange table (torch 2.10 and later; about 40 ns), or attribute by attribute before. Returns false
// when the tensor has more than 5 axes or cannot be described. The table knows nothing of requires_grad, forward-mode AD,
// conj and neg bits or modes: a caller that bypasses the dispatcher asks for those itself.
bool read_tensor(PyObject* tensor, TorchTensor& to);

// A batched (N, C, *spatial) tensor with leading spatial axes of extent 1 put in.
host::TensorView view_of(const TorchTensor& tensor);

}  // namespace convt::binding
