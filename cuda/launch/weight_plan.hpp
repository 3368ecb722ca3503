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

// The name of a configuration, such as gw64x256w1x4.
std::string name_of(const WeightConfig& config);

// How one configuration computes the weight gradient of one problem. Pointers in the parameters are null until a launch fills
// them in.
template <class Config, class Parameters>
struct ProductPlan {
  Config config{};
  Operand operand{};
  DType dtype{};
  Parameters params{};
  std::vector<char> tables;
  SumShape sum{};                   // of the partial sums, if there are any
  std::int64_t grid = 0;
  std::int64_t workspace_bytes = 0;
  std::int64_t partial_offset = 0;  // in the workspace; tables too large to be carried are at 0
  std::int32_t taps = 0;            // of a block, at most
  GemmCost cost;

  std::string name() const { return name_of(config); }
  bool carried() const { return std::int64_t(tables.size()) <= kCarriedTables; }
  // Room for tables that are not carried and for so many partial sums.
  void lay_out(const Request& request, std::int64_t splits) {
    workspace_bytes = partial_offset = carried() ? 0 : round_up(std::int64_t(tables.size()), 256);
    if (splits == 0) return;
    sum = sum_shape(request, splits);
    workspace_bytes += partial_bytes(request, splits);
  }
};

using WeightPlan = ProductPlan<WeightConfig, WeightParams>;

// Configurations in the order of weight_configs.def.
const std::vector<WeightConfig>& weight_configs();

// The best plan of a configuration, or why it has none.
std::variant<WeightPlan, std::string> plan_weight(const Request& request, const DeviceTraits& device,
                                                  const WeightConfig& config);

// Fills the pointers of a call in.
WeightParams bind(const WeightPlan& plan, const Pointers& pointers);

}  // namespace convt
