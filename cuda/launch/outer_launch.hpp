#pragma once

#include "launch/gemm_launch.hpp"
#include "launch/outer_plan.hpp"

namespace convt {

// One instantiation per configuration, each in a translation unit of its own.
template <OuterConfig kConfig>
GemmKernel outer_kernel(Operand operand, Innermost inner);

// Launches the products and, when the pixels are split, their sum on the current device: asynchronous.
void launch_outer(const OuterPlan& plan, const Pointers& pointers);

KernelResources outer_resources(const OuterPlan& plan);

}  // namespace convt
