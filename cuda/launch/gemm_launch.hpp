#pragma once

#include "launch/gemm_plan.hpp"

namespace convt {

// A compiled kernel of the implicit GEMM, for one configuration and operand.
struct GemmKernel {
  const void* function;
};

// One translation unit per line of configs.def defines this, for every operand.
template <TileConfig kConfig>
GemmKernel gemm_kernel(Operand operand);

// The registry: null when this build lacks the configuration.
GemmKernel find_gemm_kernel(const TileConfig& config, Operand operand);

// Packs the filter and computes, on the call's stream and the current device. Throws std::runtime_error.
void launch_gemm(const GemmPlan& plan, const Pointers& pointers);

// Registers per thread and bytes of local memory, as the driver counts them on the current device.
struct KernelResources {
  int registers;
  int local_bytes;
};
KernelResources gemm_resources(const GemmPlan& plan);

}  // namespace convt
