#pragma once

#include <cuda_runtime.h>

#include "launch/cuda_check.hpp"

namespace convt {

// Makes a device the current one until the guard goes.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    cuda_check(cudaGetDevice(&previous_), "asking for the current device");
    if (device == previous_) return;
    cuda_check(cudaSetDevice(device), "switching to the tensors' device");
    switched_ = true;
  }
  ~DeviceGuard() {
    if (switched_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool switched_ = false;
};

}  // namespace convt
