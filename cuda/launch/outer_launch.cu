#include "launch/outer_launch.hpp"

#include <stdexcept>

#include "launch/product_launch.hpp"

namespace convt {
namespace {

GemmKernel find_kernel(const OuterPlan& plan) {
#define CONVT_OUTER_CONFIG(...)                                              \
  if (plan.config == OuterConfig{__VA_ARGS__}) {                             \
    return outer_kernel<OuterConfig{__VA_ARGS__}>(plan.operand, plan.inner); \
  }
#include "config/outer_configs.def"
#undef CONVT_OUTER_CONFIG
  throw std::runtime_error("no kernel was compiled for configuration " + plan.name());
}

}  // namespace

void launch_outer(const OuterPlan& plan, const Pointers& pointers) {
  const OuterLaunch launch = bind(plan, pointers);
  for (const TurnParams& turn : launch.turns) launch_turning(turn, plan.operand, pointers.stream);
  launch_product(plan, launch.outer, find_kernel(plan).function, plan.config.block_threads(), pointers,
                 "launching the weight gradient");
}

KernelResources outer_resources(const OuterPlan& plan) { return function_resources(find_kernel(plan).function); }

}  // namespace convt
