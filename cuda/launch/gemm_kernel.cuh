#pragma once

#include "arch/warpgroup_executor.cuh"
#include "kernel/implicit_gemm.hpp"
#include "kernel/warpgroup_gemm.hpp"
#include "launch/gemm_launch.hpp"

namespace convt {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    implicit_gemm(const __grid_constant__ GemmParams params) {
  extern __shared__ __align__(128) char memory[];
  DeviceExecutor block(memory);
  Kernel::run(block, params);
}

// Built for every architecture, launched on Hopper alone.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    warpgroup_gemm(const __grid_constant__ GemmParams params, const __grid_constant__ PatchCopy copy) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) char lines[];
  WarpgroupExecutor<Kernel::config.threads(), Kernel::kLoading> block(lines);
  Kernel::run(block, params, copy);
#else
  __trap();
#endif
}

template <TileConfig kConfig, Operand kOperand, WayIn kWayIn>
const void* gemm_function() {
  if constexpr (kConfig.grouped() && kConfig.has(kOperand, kWayIn)) {
    return reinterpret_cast<const void*>(&warpgroup_gemm<WarpgroupGemm<kConfig, kOperand, kWayIn>>);
  } else if constexpr (kConfig.has(kOperand, kWayIn)) {
    return reinterpret_cast<const void*>(&implicit_gemm<ImplicitGemm<kConfig, kOperand>>);
  } else {
    return nullptr;
  }
}

template <TileConfig kConfig, WayIn kWayIn>
const void* gemm_function(Operand operand) {
  const void* const functions[kOperands] = {
      gemm_function<kConfig, Operand::tf32, kWayIn>(), gemm_function<kConfig, Operand::ieee, kWayIn>(),
      gemm_function<kConfig, Operand::bfloat16, kWayIn>(), gemm_function<kConfig, Operand::float16, kWayIn>()};
  return functions[int(operand)];
}

template <TileConfig kConfig>
GemmKernel gemm_kernel(Operand operand, WayIn way) {
  GemmKernel kernel;
  kernel.function =
      in_lines(way) ? gemm_function<kConfig, WayIn::boxes>(operand) : gemm_function<kConfig, WayIn::gathered>(operand);
  return kernel;
}

}  // namespace convt
