#pragma once

#include "kernel/depthwise_grad_input.hpp"
#include "kernel/depthwise_grad_weight.hpp"
#include "kernel/sum_partials.hpp"
#include "simulator/run_direct.hpp"

// The gradients of depthwise problems on the host; shared memory and workspace start as NaN. For tests.
namespace convt::simulator {

void run_depthwise_grad_input(const DirectRun& run, DType dtype, const DepthwiseGradientShape& shape,
                              const DirectOperands& data);
// `taps` is an index of kDepthwiseTapSets.
void run_depthwise_grad_weight(const DirectRun& run, DType dtype, int taps, const DepthwiseGradientShape& shape,
                               const SumShape& sum, std::int64_t workspace_bytes, const DirectOperands& data);

}  // namespace convt::simulator
