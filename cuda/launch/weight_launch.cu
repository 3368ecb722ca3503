#include "launch/weight_launch.hpp"

#include <cstring>
#include <stdexcept>

#include "launch/carried.hpp"
#include "launch/cuda_check.hpp"

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
  WeightParams params = bind(plan, pointers);
  Carried<kCarriedTables> carried;
  if (plan.carried()) {
    std::memcpy(carried.bytes, plan.tables.data(), plan.tables.size());
  } else {
    launch_tables(plan.tables, static_cast<char*>(pointers.workspace), pointers.stream);
  }
  const void* function = find_kernel(plan).function;
  void* arguments[] = {&params, &carried};
  launch_function(function, plan.grid, plan.config.threads(), params.shared.bytes, arguments, pointers.stream,
                  "launching the weight gradient");
  if (params.partial) launch_sum_partials(plan.sum, plan.dtype, params.result, pointers.filter, pointers.stream);
}

KernelResources weight_resources(const WeightPlan& plan) { return function_resources(find_kernel(plan).function); }

}  // namespace convt
