#pragma once

#include "arch/device_executor.cuh"
#include "kernel/implicit_gemm.hpp"
#include "launch/gemm_launch.hpp"

namespace convt {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    implicit_gemm(const __grid_constant__ GemmParams params) {
  extern __shared__ __align__(128) char memory[];
  DeviceExecutor block(memory);
  Kernel::run(block, params);
}

template <TileConfig kConfig, Operand kOperand>
const void* gemm_function() {
  if constexpr (kConfig.has(kOperand)) {
    return reinterpret_cast<const void*>(&implicit_gemm<ImplicitGemm<kConfig, kOperand>>);
  } else {
    return nullptr;
  }
}

template <TileConfig kConfig>
GemmKernel gemm_kernel(Operand operand) {
  const void* const functions[kOperands] = {
      gemm_function<kConfig, Operand::tf32>(), gemm_function<kConfig, Operand::ieee>(),
      gemm_function<kConfig, Operand::bfloat16>(), gemm_function<kConfig, Operand::float16>()};
  return {functions[int(operand)]};
}

}  // namespace convt
