#include <memory>

#include "launch/device_info.hpp"
#include "launch/device_kernel.cuh"

namespace convt {
namespace {

struct TapTable {
  struct Params {
    Axis axis;
    Origin origin;
    Tap* taps;   // [axis.filter]
  };
  __device__ void operator()(const Params& params) const {
    const std::int64_t tap = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (tap < params.axis.filter) params.taps[tap] = tap_of(params.axis, tap, params.origin);
  }
};

struct DeviceFree {
  void operator()(void* memory) const { cudaFree(memory); }
};

}  // namespace

std::vector<DeviceInfo> cuda_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();   // no driver is an answer, not an error that the next call should report
    return {};
  }
  std::vector<DeviceInfo> devices;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties;
    cuda_check(cudaGetDeviceProperties(&properties, device), "reading the properties of a GPU");
    int clock_khz = 0, memory_khz = 0;
    cuda_check(cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, device), "reading the clock of a GPU");
    cuda_check(cudaDeviceGetAttribute(&memory_khz, cudaDevAttrMemoryClockRate, device),
               "reading the memory clock of a GPU");
    constexpr double reachable = 0.88, double_rate = 2, sustained = 0.886;   // an H200's 1.755 of 1.98 GHz
    devices.push_back({properties.name, properties.major, properties.minor, properties.multiProcessorCount,
                       std::int64_t(properties.totalGlobalMem), std::int64_t(properties.sharedMemPerBlockOptin),
                       std::int64_t(properties.sharedMemPerMultiprocessor), std::int64_t(properties.l2CacheSize),
                       clock_khz * 1e-6, sustained * clock_khz * 1e-6,
                       reachable * double_rate * memory_khz * 1e-6 * properties.memoryBusWidth / 8});
  }
  return devices;
}

std::vector<Tap> cuda_taps(const Axis& axis, Origin origin) {
  std::vector<Tap> taps(axis.filter);
  const std::size_t bytes = taps.size() * sizeof(Tap);
  void* memory = nullptr;
  cuda_check(cudaMalloc(&memory, bytes), "allocating a tap table");
  const std::unique_ptr<void, DeviceFree> owner(memory);
  constexpr int threads = 128;
  launch_kernel<TapTable>(unsigned(ceil_div(axis.filter, threads)), threads, 0, nullptr,
                          {axis, origin, static_cast<Tap*>(memory)}, "launching the tap table kernel");
  cuda_check(cudaMemcpy(taps.data(), memory, bytes, cudaMemcpyDeviceToHost), "reading a tap table");
  return taps;
}

}  // namespace convt
