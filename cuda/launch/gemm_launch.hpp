#pragma once

#include "launch/gemm_plan.hpp"

namespace convt {

// A compiled kernel of the implicit GEMM, for one configuration and operand.
struct GemmKernel {
  const void* function;
};

// One translation unit per line of configs.def defines this, for every operand.
template <TileConfig kConfig>
GemmKernel gemm_kernel(Operand operand, WayIn way);

// The registry: null when this build lacks the configuration.
GemmKernel find_gemm_kernel(const TileConfig& config, Operand operand, WayIn way);

// Packs the filter and computes, on the call's stream and the current device. Throws std::runtime_error.
void launch_gemm(const GemmPlan& plan, const Pointers& pointers);

// Registers per thread and bytes of local memory, as the driver counts them on the current device.
struct KernelResources {
  int registers;
  int local_bytes;
};
// What every launch of a kernel with `shared` bytes of dynamic shared memory goes through. Throws std::runtime_error.
void launch_function(const void* function, std::int64_t grid, int threads, std::int64_t shared, void** arguments,
                     void* stream, const char* what);

// Copies tables that no kernel's parameters hold to device memory, piece by piece in parameters.
void launch_tables(const std::vector<char>& tables, char* target, void* stream);

KernelResources function_resources(const void* function);
KernelResources gemm_resources(const GemmPlan& plan);

}  // namespace convt
