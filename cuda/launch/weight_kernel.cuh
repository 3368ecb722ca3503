#pragma once

#include "arch/device_executor.cuh"
#include "kernel/weight_gemm.hpp"
#include "launch/carried.hpp"
#include "launch/weight_launch.hpp"

namespace convt {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    weight_gemm(const __grid_constant__ WeightParams params, const __grid_constant__ Carried<kCarriedTables> carried) {
  extern __shared__ __align__(128) char memory[];
  DeviceExecutor block(memory);
  Kernel::run(block, params, params.tables == nullptr ? carried.bytes : params.tables);
}

template <WeightConfig kConfig, Operand kOperand>
const void* weight_function() {
  if constexpr (kConfig.has(kOperand)) {
    return reinterpret_cast<const void*>(&weight_gemm<WeightGemm<kConfig, kOperand>>);
  } else {
    return nullptr;
  }
}

template <WeightConfig kConfig>
GemmKernel weight_kernel(Operand operand) {
  const void* const functions[kOperands] = {
      weight_function<kConfig, Operand::tf32>(), weight_function<kConfig, Operand::ieee>(),
      weight_function<kConfig, Operand::bfloat16>(), weight_function<kConfig, Operand::float16>()};
  return {functions[int(operand)]};
}

}  // namespace convt
