#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace convt {

// Every CUDA call goes through this.
inline void cuda_check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

}  // namespace convt
