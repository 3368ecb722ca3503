#include <memory>

#include "launch/cuda_check.hpp"
#include "launch/device_info.hpp"

namespace convt {
namespace {

// The one __global__: kernels are structs, so profilers show their names and configurations.
template <class Kernel>
__global__ void device_kernel(typename Kernel::Params params) {
  Kernel{}(params);
}

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
    devices.push_back({properties.name, properties.major, properties.minor, properties.multiProcessorCount,
                       std::int64_t(properties.totalGlobalMem)});
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
  device_kernel<TapTable>
      <<<unsigned(ceil_div(axis.filter, threads)), threads>>>({axis, origin, static_cast<Tap*>(memory)});
  cuda_check(cudaGetLastError(), "launching the tap table kernel");
  cuda_check(cudaMemcpy(taps.data(), memory, bytes, cudaMemcpyDeviceToHost), "reading a tap table");
  return taps;
}

}  // namespace convt
