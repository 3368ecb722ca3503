#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch/cuda_check.hpp"

namespace convt {

// Launch bounds that a kernel states, or the widest ones.
template <class Kernel>
constexpr int max_threads() {
  if constexpr (requires { Kernel::kMaxThreads; }) {
    return Kernel::kMaxThreads;
  } else {
    return 1024;
  }
}
template <class Kernel>
constexpr int min_blocks() {
  if constexpr (requires { Kernel::kMinBlocks; }) {
    return Kernel::kMinBlocks;
  } else {
    return 1;
  }
}

// The __global__ of kernels that are structs: profilers show their names and configurations. The implicit GEMM, which brings an
// executor, and its packing, which carries tables, have their own.
template <class Kernel>
__global__ void __launch_bounds__(max_threads<Kernel>(), min_blocks<Kernel>())
    device_kernel(const __grid_constant__ typename Kernel::Params params) {
  Kernel{}(params);
}

// On the current device. More than 48 KiB of dynamic shared memory has to be asked for first.
template <class Kernel>
void launch_kernel(dim3 grid, int threads, std::int64_t shared_bytes, void* stream,
                   const typename Kernel::Params& params, const char* what) {
  if (shared_bytes > 48 * 1024) {
    cuda_check(
        cudaFuncSetAttribute(device_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)),
        what);
  }
  device_kernel<Kernel><<<grid, threads, std::size_t(shared_bytes), static_cast<cudaStream_t>(stream)>>>(params);
  cuda_check(cudaGetLastError(), what);
}

}  // namespace convt
