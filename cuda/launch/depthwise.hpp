#pragma once

#include <string>
#include <variant>

#include "kernel/depthwise_gradient.hpp"
#include "kernel/depthwise_setup.hpp"
#include "kernel/sum_partials.hpp"
#include "launch/direct_cost.hpp"
#include "launch/request.hpp"

namespace convt {

// How the lanes of a warp lie in the output.
enum class DepthwiseLanes { rows, channels, channel_vectors };

struct DepthwiseGrid {
  std::int64_t grid = 0;             // thread blocks
  int threads = 0;                   // per block
  std::int64_t shared_bytes = 0;     // per block, dynamic
  DirectCost cost;
};

struct DepthwiseLaunch : DepthwiseGrid {
  DepthwiseShape shape{};
  DepthwiseLanes lanes = DepthwiseLanes::rows;
};

struct DepthwiseGradientLaunch : DepthwiseGrid {
  DepthwiseGradientShape shape{};
  int taps = 0;                      // of grad_weight: which of kDepthwiseTapSets
  SumShape sum{};                    // of grad_weight: its second stage
};

struct DepthwisePlan {
  Operator op = Operator::forward;
  std::variant<DepthwiseLaunch, DepthwiseGradientLaunch> launch;
  std::variant<DepthwiseLaunch, DepthwiseGradientLaunch> unaligned;   // when a tensor is not aligned to 16 bytes
  DType dtype = DType::float32;
  std::string config;                // lanes, channels x outputs along D, H and W: "rows4x1x16x64"
  std::int64_t bytes_predicted = 0;  // from and to memory
  std::int64_t workspace_bytes = 0;

  const DepthwiseGrid& grid(bool aligned) const {
    return std::visit([](const auto& chosen) -> const DepthwiseGrid& { return chosen; }, aligned ? launch : unaligned);
  }
  const DirectCost& cost() const { return grid(true).cost; }
};

// The plan, or why this family cannot do it.
std::variant<DepthwisePlan, std::string> plan_depthwise(const Request& request, const DeviceTraits& device);

// On the current device; asynchronous. Throws std::runtime_error.
void launch_depthwise(const DepthwisePlan& plan, const Pointers& pointers);

// The kernel of aligned tensors, for the CUDA runtime.
const void* depthwise_function(const DepthwisePlan& plan);

}  // namespace convt
