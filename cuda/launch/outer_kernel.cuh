#pragma once

#include "arch/warpgroup_executor.cuh"
#include "kernel/outer_gemm.hpp"
#include "launch/carried.hpp"
#include "launch/outer_launch.hpp"

namespace convt {

// Built for every architecture, launched on Hopper alone.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    outer_gemm(const __grid_constant__ OuterParams params, const __grid_constant__ Carried<kCarriedTables> carried) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) char memory[];   // lines of tensor cores
  WarpgroupExecutor<Kernel::config.threads(), Kernel::config.loaders()> block(memory);
  Kernel::run(block, params, params.tables == nullptr ? carried.bytes : params.tables);
#else
  __trap();
#endif
}

template <OuterConfig kConfig, Operand kOperand, Innermost kInner>
const void* outer_function() {
  return reinterpret_cast<const void*>(&outer_gemm<OuterGemm<kConfig, kOperand, kInner>>);
}

template <OuterConfig kConfig, Innermost kInner>
GemmKernel outer_kernel(Operand operand) {
  const void* const functions[kOperands] = {outer_function<kConfig, Operand::tf32, kInner>(), nullptr,
                                            outer_function<kConfig, Operand::bfloat16, kInner>(),
                                            outer_function<kConfig, Operand::float16, kInner>()};
  return {functions[int(operand)]};
}

template <OuterConfig kConfig>
GemmKernel outer_kernel(Operand operand, Innermost inner) {
  return inner == Innermost::pixels ? outer_kernel<kConfig, Innermost::pixels>(operand)
                                    : outer_kernel<kConfig, Innermost::channels>(operand);
}

}  // namespace convt
