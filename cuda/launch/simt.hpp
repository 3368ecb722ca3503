#pragma once

#include <string>
#include <variant>

#include "kernel/simt_shape.hpp"
#include "launch/direct_cost.hpp"
#include "launch/request.hpp"
#include "launch/sum_partials.hpp"

namespace convt {

struct SimtPlan {
  SimtShape shape{};
  SumShape sum{};                    // with splits: what adds them up
  Operator op = Operator::forward;
  DType dtype = DType::float32;
  std::int64_t grid = 0;             // thread blocks; x and y of the launch follow from it
  int threads = 0;                   // per block
  std::int64_t shared_bytes = 0;     // per block, dynamic
  std::string config;                // channels x pixels x slices, and x splits if any: "64x128x1", "64x64x2x8"
  DirectCost cost;
  std::int64_t bytes_predicted = 0;  // from and to memory
  std::int64_t workspace_bytes = 0;  // partial sums
};

// The plan, or why this family cannot do it: only absurd sizes.
std::variant<SimtPlan, std::string> plan_simt(const Request& request, const DeviceTraits& device);

// Thread blocks along x and y, grid in all or a few more.
struct SimtGrid {
  std::uint32_t x, y;
};
constexpr SimtGrid simt_grid(std::int64_t blocks) {
  const std::int64_t y = ceil_div(blocks, (1LL << 31) - 1);
  return {std::uint32_t(ceil_div(blocks, y)), std::uint32_t(y)};
}

// What the kernel reads and writes of these pointers.
SimtOperands simt_operands(const SimtPlan& plan, const Pointers& pointers);

// On the current device; asynchronous. Throws std::runtime_error.
void launch_simt(const SimtPlan& plan, const Pointers& pointers);

// The kernel, for the CUDA runtime.
const void* simt_function(const SimtPlan& plan);

}  // namespace convt
