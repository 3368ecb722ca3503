#include "launch/operator_launch.hpp"

#include "launch/device_guard.hpp"
#include "launch/outer_launch.hpp"
#include "launch/weight_launch.hpp"

namespace convt {
namespace {

void launch(const GemmPlan& plan, const Pointers& pointers) { launch_gemm(plan, pointers); }
void launch(const WeightPlan& plan, const Pointers& pointers) { launch_weight(plan, pointers); }
void launch(const OuterPlan& plan, const Pointers& pointers) { launch_outer(plan, pointers); }
void launch(const DepthwisePlan& plan, const Pointers& pointers) { launch_depthwise(plan, pointers); }
void launch(const SimtPlan& plan, const Pointers& pointers) { launch_simt(plan, pointers); }

KernelResources resources_of(const GemmPlan& plan) { return gemm_resources(plan); }
KernelResources resources_of(const WeightPlan& plan) { return weight_resources(plan); }
KernelResources resources_of(const OuterPlan& plan) { return outer_resources(plan); }
KernelResources resources_of(const DepthwisePlan& plan) { return function_resources(depthwise_function(plan)); }
KernelResources resources_of(const SimtPlan& plan) { return function_resources(simt_function(plan)); }

// Whether there is a GPU, and kernels for it.
bool has_kernels() {
  constexpr int oldest = 8;   // major compute capability
  int device = 0, major = 0;
  if (cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess) {
    return major >= oldest;
  }
  cudaGetLastError();   // no driver is an answer, not an error that the next call should report
  return false;
}

}  // namespace

void launch_operator(const OperatorPlan& plan, const Pointers& pointers, int device) {
  const DeviceGuard guard(device);
  std::visit([&](const auto& chosen) { launch(chosen, pointers); }, plan.chosen);
}

std::optional<KernelResources> operator_resources(const OperatorPlan& plan) {
  if (!has_kernels()) return std::nullopt;
  return std::visit([](const auto& chosen) { return resources_of(chosen); }, plan.chosen);
}

}  // namespace convt
