#pragma once

#include <optional>

#include "launch/forward_plan.hpp"
#include "launch/gemm_launch.hpp"

namespace convt {

// Enqueues a call on its stream, which belongs to `device`. The caller's current device is the same afterwards. Throws
// std::runtime_error that names the CUDA call.
void launch_forward(const ForwardPlan& plan, const ForwardPointers& pointers, int device);

// What the chosen kernel takes on the current device; nothing without a GPU that has kernels. Throws std::runtime_error.
std::optional<KernelResources> forward_resources(const ForwardPlan& plan);

}  // namespace convt
