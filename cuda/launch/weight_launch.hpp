#pragma once

#include "launch/gemm_launch.hpp"
#include "launch/weight_plan.hpp"

namespace convt {

// One instantiation per configuration, each in a translation unit of its own.
template <WeightConfig kConfig>
GemmKernel weight_kernel(Operand operand);

// Launches the products and, when the pixels are split, their sum on the current device: asynchronous.
void launch_weight(const WeightPlan& plan, const Pointers& pointers);

KernelResources weight_resources(const WeightPlan& plan);

}  // namespace convt
