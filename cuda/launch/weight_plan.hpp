#pragma once

#include <string>
#include <variant>
#include <vector>

#include "collective/weight_params.hpp"
#include "launch/gemm_plan.hpp"
#include "launch/sum_partials.hpp"

namespace convt {

// Tables that travel beside a kernel's parameters; larger ones go to the workspace first.
inline constexpr std::int64_t kCarriedTables = 3072;

// How one configuration computes the weight gradient of one problem. Pointers in the parameters are null until a launch fills
// them in.
struct WeightPlan {
  WeightConfig config{};
  Operand operand{};
  DType dtype{};
  WeightParams params{};
  std::vector<char> tables;
  SumShape sum{};                   // of the partial sums, when there is more than one split
  std::int64_t grid = 0;
  std::int64_t workspace_bytes = 0;
  std::int64_t partial_offset = 0;  // in the workspace; tables too large to be carried are at 0
  std::int32_t taps = 0;            // of a block, at most
  GemmCost cost;

  std::string name() const;
  bool carried() const { return std::int64_t(tables.size()) <= kCarriedTables; }
};

// Configurations in the order of weight_configs.def, and their names, such as gw64x256w1x4.
const std::vector<WeightConfig>& weight_configs();
std::string name_of(const WeightConfig& config);

// The best plan of a configuration, or why it has none.
std::variant<WeightPlan, std::string> plan_weight(const Request& request, const DeviceTraits& device,
                                                  const WeightConfig& config);

// Fills the pointers of a call in.
WeightParams bind(const WeightPlan& plan, const Pointers& pointers);

}  // namespace convt
