#include "launch/weight_launch.hpp"

#include <stdexcept>

#include "launch/product_launch.hpp"

namespace convt {
namespace {

GemmKernel find_kernel(const WeightPlan& plan) {
#define CONVT_WEIGHT_CONFIG(...) \
  if (plan.config == WeightConfig{__VA_ARGS__}) return weight_kernel<WeightConfig{__VA_ARGS__}>(plan.operand);
#include "config/weight_configs.def"
#undef CONVT_WEIGHT_CONFIG
  throw std::runtime_error("no kernel was compiled for configuration " + plan.name());
}

}  // namespace

void launch_weight(const WeightPlan& plan, const Pointers& pointers) {
  launch_product(plan, bind(plan, pointers), find_kernel(plan).function, plan.config.threads(), pointers,
                 "launching the weight gradient");
}

KernelResources weight_resources(const WeightPlan& plan) { return function_resources(find_kernel(plan).function); }

}  // namespace convt
