#pragma once

#include <string>

#include "launch/depthwise.hpp"

namespace convt {

// The best launch of grad_input or grad_weight; no grid when no tile fits. Vectors of 16 bytes only with `aligned`.
DepthwiseGradientLaunch plan_depthwise_gradient(const Request& request, const DeviceTraits& device, bool aligned,
                                                std::int64_t bytes);

// Its name: "rows1x1x16x64" is lanes, channels, input pixels along D, H and W; grad_weight adds the taps of a thread.
std::string name_of(Operator op, const DepthwiseGradientLaunch& launch);

// One of the plan's two launches, on the current device; asynchronous. Throws std::runtime_error.
void launch_depthwise_gradient(const DepthwisePlan& plan, const DepthwiseGradientLaunch& launch,
                               const Pointers& pointers);

// Its kernel, for the CUDA runtime.
const void* depthwise_gradient_function(const DepthwisePlan& plan, const DepthwiseGradientLaunch& launch);

}  // namespace convt
