#include "launch/gemm_launch.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "launch/carried.hpp"
#include "launch/cuda_check.hpp"
#include "launch/patch_copy.hpp"
#include "launch/turn_plan.hpp"

namespace convt {
namespace {

// Tables travel as parameters of the packing kernel.
constexpr int kSmallTables = 3072;
constexpr int kLargeTables = 24 << 10;

extern __shared__ __align__(16) char pack_memory[];

__device__ void clear_counters(const PackParams& params) {
  const std::int32_t threads = gridDim.x * blockDim.x;
#pragma unroll 1
  for (std::int32_t counter = blockIdx.x * blockDim.x + threadIdx.x; counter < params.counters; counter += threads) {
    params.arrived[counter] = 0;
  }
}

template <int kBytes>
__global__ void __launch_bounds__(PackFilter::kThreads, PackFilter::kMinBlocks)
    pack_filter(const __grid_constant__ PackParams params, const __grid_constant__ Carried<kBytes> carried) {
  const std::int32_t threads = gridDim.x * blockDim.x * 16;
#pragma unroll 1
  for (std::int32_t at = (blockIdx.x * blockDim.x + threadIdx.x) * 16; at < params.table.bytes; at += threads) {
    *reinterpret_cast<uint4*>(params.tables + at) = *reinterpret_cast<const uint4*>(carried.bytes + at);
  }
  clear_counters(params);
  PackFilter::run(params, carried.bytes, pack_memory);
}

// For tables that no parameter list holds: first they, piece by piece, then the filter.
__global__ void __launch_bounds__(PackFilter::kThreads)
    carry_tables(char* target, std::int32_t bytes, const __grid_constant__ Carried<kLargeTables> carried) {
  for (std::int32_t at = threadIdx.x * 16; at < bytes; at += blockDim.x * 16) {
    *reinterpret_cast<uint4*>(target + at) = *reinterpret_cast<const uint4*>(carried.bytes + at);
  }
}

__global__ void __launch_bounds__(PackFilter::kThreads, PackFilter::kMinBlocks)
    pack_filter_in_place(const __grid_constant__ PackParams params) {
  clear_counters(params);
  PackFilter::run(params, params.tables, pack_memory);
}

}  // namespace

void launch_function(const void* function, std::int64_t grid, int threads, std::int64_t shared, void** arguments,
                     void* stream, const char* what) {
  // A kernel may use more than 48 KB of shared memory, static ones included, only after this, on every device.
  if (shared > PackFilter::kMostShared) {
    cuda_check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)), what);
  }
  cuda_check(cudaLaunchKernel(function, dim3(unsigned(grid)), dim3(threads), arguments, shared,
                              static_cast<cudaStream_t>(stream)),
             what);
}

void launch_tables(const std::vector<char>& tables, char* target, void* stream) {
  for (std::size_t at = 0; at < tables.size(); at += kLargeTables) {
    Carried<kLargeTables> carried;
    std::int32_t bytes = std::int32_t(std::min<std::size_t>(kLargeTables, tables.size() - at));
    std::memcpy(carried.bytes, tables.data() + at, bytes);
    char* to = target + at;
    void* arguments[] = {&to, &bytes, &carried};
    launch_function(reinterpret_cast<const void*>(&carry_tables), 1, PackFilter::kThreads, 0, arguments, stream,
                    "launching the tables' copy");
  }
}

KernelResources function_resources(const void* function) {
  cudaFuncAttributes attributes;
  cuda_check(cudaFuncGetAttributes(&attributes, function), "reading the resources of a kernel");
  return {attributes.numRegs, int(attributes.localSizeBytes)};
}

namespace {

// Shared memory is divided as the GEMM divides it: the multiprocessors need not be emptied between the two.
void launch_packing(const void* function, const PackParams& params, void** arguments, void* stream) {
  constexpr const char* what = "launching the filter's packing";
  cuda_check(
      cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
      what);
  launch_function(function, params.grid(), PackFilter::kThreads, params.shared.bytes, arguments, stream, what);
}

template <int kBytes>
void pack_carried(const GemmPlan& plan, PackParams& params, void* stream) {
  Carried<kBytes> carried;
  std::memcpy(carried.bytes, plan.tables.data(), plan.tables.size());
  void* arguments[] = {&params, &carried};
  launch_packing(reinterpret_cast<const void*>(&pack_filter<kBytes>), params, arguments, stream);
}

void launch_pack(const GemmPlan& plan, PackParams params, void* stream) {
  if (plan.tables.size() <= kSmallTables) return pack_carried<kSmallTables>(plan, params, stream);
  if (plan.tables.size() <= kLargeTables) return pack_carried<kLargeTables>(plan, params, stream);
  launch_tables(plan.tables, params.tables, stream);
  void* arguments[] = {&params};
  launch_packing(reinterpret_cast<const void*>(&pack_filter_in_place), params, arguments, stream);
}

}  // namespace

GemmKernel find_gemm_kernel(const TileConfig& config, Operand operand, WayIn way) {
#define CONVT_CONFIG(...) \
  if (config == TileConfig{__VA_ARGS__}) return gemm_kernel<TileConfig{__VA_ARGS__}>(operand, way);
#include "config/configs.def"
#undef CONVT_CONFIG
  throw std::runtime_error("no kernel was compiled for configuration " + name_of(config));
}

void launch_gemm(const GemmPlan& plan, const Pointers& pointers) {
  GemmLaunch call = bind(plan, pointers);
  launch_pack(plan, call.pack, pointers.stream);
  const void* function = find_gemm_kernel(plan.config, plan.operand, call.way).function;
  if (plan.way == WayIn::turned) launch_turning(call.turn, plan.operand, pointers.stream);
  PatchCopy copy{};
  copy.group_channels = plan.group_channels;
  copy.group_images = plan.group_images;
  if (in_lines(call.way)) describe_box(call.box, plan.operand, copy);
  void* arguments[] = {&call.gemm, &copy};   // the latter for warpgroups
  launch_function(function, plan.grid, plan.config.block_threads(call.way), call.gemm.shared.bytes, arguments,
                  pointers.stream, "launching the implicit GEMM");
}

KernelResources gemm_resources(const GemmPlan& plan) {
  return function_resources(find_gemm_kernel(plan.config, plan.operand, plan.way).function);
}

}  // namespace convt
