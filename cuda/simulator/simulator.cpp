#include "simulator/simulator.hpp"

#include <algorithm>
#include <numeric>

#include "kernel/implicit_gemm.hpp"

namespace convt::simulator {
namespace {

template <TileConfig kConfig, Operand kOperand>
void run_blocks(const GemmPlan& plan, const GemmParams& params, const Schedule& schedule, Counters& counters) {
  std::vector<std::int32_t> blocks(plan.grid);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (schedule.order == 1) std::reverse(blocks.begin(), blocks.end());
  for (std::int32_t index : blocks) {
    BlockExecutor block(index, kConfig.warps(), params.shared.bytes, schedule, counters);
    ImplicitGemm<kConfig, kOperand>::run(block, params);
  }
}

using Run = void (*)(const GemmPlan&, const GemmParams&, const Schedule&, Counters&);

template <TileConfig kConfig>
Run run_of(const TileConfig& config, Operand operand) {
  if (!(config == kConfig)) return nullptr;
  constexpr Run runs[kOperands] = {run_blocks<kConfig, Operand::tf32>, run_blocks<kConfig, Operand::ieee>,
                                   run_blocks<kConfig, Operand::bfloat16>, run_blocks<kConfig, Operand::float16>};
  return runs[int(operand)];
}

}  // namespace

Counters simulate(const GemmPlan& plan, const Pointers& pointers, const Schedule& schedule) {
  const GemmLaunch launch = bind(plan, pointers);
  std::memcpy(launch.pack.tables, plan.tables.data(), plan.tables.size());
  for (std::int64_t unit = 0; unit < launch.pack.units; ++unit) {
    PackFilter::unit(launch.pack, plan.tables.data(), unit);
  }
  for (std::int32_t counter = 0; counter < launch.pack.counters; ++counter) launch.pack.arrived[counter] = 0;
  Counters counters;
  for (const Run run : {
#define CONVT_CONFIG(...) run_of<TileConfig{__VA_ARGS__}>(plan.config, plan.operand),
#include "config/configs.def"
#undef CONVT_CONFIG
       }) {
    if (run != nullptr) run(plan, launch.gemm, schedule, counters);
  }
  return counters;
}

}  // namespace convt::simulator
