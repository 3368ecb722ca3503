#pragma once

#include <optional>

#include "collective/outer_params.hpp"
#include "launch/turn_plan.hpp"
#include "launch/weight_plan.hpp"

namespace convt {

// The name of a configuration, such as gw128x256g2.
std::string name_of(const OuterConfig& config);

// How one configuration of the kernel for Hopper computes the weight gradient.
struct OuterPlan : ProductPlan<OuterConfig, OuterParams> {
  // A tensor that is turned first, and where to in the workspace.
  struct Turning {
    TurnParams params;
    std::int64_t offset;
  };
  Innermost inner = Innermost::pixels;
  std::optional<Turning> input, patch;
};

// With the pointers of a call.
struct OuterLaunch {
  OuterParams outer;
  std::vector<TurnParams> turns;
};

// Configurations in the order of outer_configs.def.
const std::vector<OuterConfig>& outer_configs();

// The best plan of a configuration, or why it has none.
std::variant<OuterPlan, std::string> plan_outer(const Request& request, const DeviceTraits& device,
                                                const OuterConfig& config);

OuterLaunch bind(const OuterPlan& plan, const Pointers& pointers);

}  // namespace convt
