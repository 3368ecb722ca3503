#pragma once

#include <string>
#include <variant>

#include "kernel/depthwise_setup.hpp"
#include "launch/direct_cost.hpp"
#include "launch/request.hpp"

namespace convt {

// How the lanes of a warp lie in the output.
enum class DepthwiseLanes { rows, channels, channel_vectors };

struct DepthwiseLaunch {
  DepthwiseShape shape{};
  DepthwiseLanes lanes = DepthwiseLanes::rows;
  std::int64_t grid = 0;             // thread blocks
  int threads = 0;                   // per block
  std::int64_t shared_bytes = 0;     // per block, dynamic
  DirectCost cost;
};

struct DepthwisePlan {
  DepthwiseLaunch launch;
  DepthwiseLaunch unaligned;         // when a tensor is not aligned to 16 bytes; the same otherwise
  DType dtype = DType::float32;
  std::string config;                // lanes, channels x outputs along D, H and W: "rows4x1x16x64"
  std::int64_t bytes_predicted = 0;  // from and to memory
  std::int64_t workspace_bytes = 0;
};

// The plan, or why this family cannot do it.
std::variant<DepthwisePlan, std::string> plan_depthwise(const Request& request, const DeviceTraits& device);

// On the current device; asynchronous. Throws std::runtime_error.
void launch_depthwise(const DepthwisePlan& plan, const Pointers& pointers);

// The kernel of aligned tensors, for the CUDA runtime.
const void* depthwise_function(const DepthwisePlan& plan);

}  // namespace convt
