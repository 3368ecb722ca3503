#pragma once

#include <optional>

#include "launch/gemm_launch.hpp"
#include "launch/operator_plan.hpp"

namespace convt {

// Enqueues a call on its stream, which belongs to `device`. The caller's current device is the same afterwards. Throws
// std::runtime_error that names the CUDA call.
void launch_operator(const OperatorPlan& plan, const Pointers& pointers, int device);

// What the chosen kernel takes on the current device; nothing without a GPU that has kernels. Throws std::runtime_error.
std::optional<KernelResources> operator_resources(const OperatorPlan& plan);

}  // namespace convt
