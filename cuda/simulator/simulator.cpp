#include "simulator/simulator.hpp"
#include "simulator/run_pack.hpp"
#include "simulator/run_sum.hpp"
#include "simulator/run_turn.hpp"
#include "simulator/warpgroup_block.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "kernel/implicit_gemm.hpp"
#include "kernel/outer_gemm.hpp"
#include "kernel/warpgroup_gemm.hpp"
#include "kernel/weight_gemm.hpp"
#include "launch/turn_plan.hpp"

namespace convt::simulator {
namespace {

// Thread blocks one after the other, in an order that the schedule chooses.
template <class Visit>
void each_block(std::int64_t grid, const Schedule& schedule, Visit visit) {
  std::vector<std::int32_t> blocks(grid);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (schedule.order == 1) std::reverse(blocks.begin(), blocks.end());
  for (std::int32_t index : blocks) visit(index);
}

InputMemory input_of(const GemmPlan& plan, const GemmParams& params, int element_bytes) {
  const auto* begin = static_cast<const char*>(params.input);
  if (plan.way == WayIn::turned) return {begin, begin + turned_bytes(plan.turn, plan.operand)};
  std::int64_t last = (std::int64_t(params.in_channels) * params.conv_groups - 1) * params.input_strides[1];
  for (int axis = 0; axis < kTileAxes; ++axis) {
    last += (params.axes[axis].input - 1) * params.input_strides[axis == 0 ? 0 : 1 + axis];
  }
  return {begin, begin + (last + 1) * element_bytes};
}

template <TileConfig kConfig, Operand kOperand, WayIn kWayIn>
void run_warpgroups(const GemmPlan& plan, const GemmLaunch& launch, const Schedule& schedule, Counters& counters) {
  if constexpr (kConfig.has(kOperand, kWayIn)) {
    using Kernel = WarpgroupGemm<kConfig, kOperand, kWayIn>;
    const GemmParams& params = launch.gemm;
    PatchCopy copy;
    const PatchBox* const box = &launch.box;
    copy.group_channels = plan.group_channels;
    copy.group_images = plan.group_images;
    std::memcpy(copy.bytes, &box, sizeof(box));
    each_block(plan.grid, schedule, [&](std::int32_t index) {
      WarpgroupBlock block(index, std::int32_t(plan.grid), kConfig.groups(), Kernel::kLoading / 32 - 1,
                           Kernel::kWorkers, Kernel::kStorers, input_of(plan, params, operand_bytes(kOperand)),
                           params.shared.bytes, schedule, counters);
      Kernel::run(block, params, copy);
    });
  }
}

template <TileConfig kConfig, Operand kOperand>
void run_blocks(const GemmPlan& plan, const GemmLaunch& launch, const Schedule& schedule, Counters& counters) {
  if constexpr (kConfig.grouped()) {
    (in_lines(launch.way) ? run_warpgroups<kConfig, kOperand, WayIn::boxes>
                          : run_warpgroups<kConfig, kOperand, WayIn::gathered>)(plan, launch, schedule, counters);
  } else if constexpr (kConfig.has(kOperand)) {
    each_block(plan.grid, schedule, [&](std::int32_t index) {
      BlockExecutor block(index, kConfig.warps(), launch.gemm.shared.bytes, schedule, counters);
      ImplicitGemm<kConfig, kOperand>::run(block, launch.gemm);
    });
  }
}

using Run = void (*)(const GemmPlan&, const GemmLaunch&, const Schedule&, Counters&);

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
  run_pack(plan, launch.pack, schedule.order == 1);
  if (plan.way == WayIn::turned) run_turn(launch.turn, plan.operand, schedule.order == 1);
  Counters counters;
  for (const Run run : {
#define CONVT_CONFIG(...) run_of<TileConfig{__VA_ARGS__}>(plan.config, plan.operand),
#include "config/configs.def"
#undef CONVT_CONFIG
       }) {
    if (run != nullptr) run(plan, launch, schedule, counters);
  }
  return counters;
}

namespace {

using RunWeight = void (*)(const WeightPlan&, const WeightParams&, const Schedule&, Counters&);

template <WeightConfig kConfig, Operand kOperand>
void run_weight_blocks(const WeightPlan& plan, const WeightParams& params, const Schedule& schedule,
                       Counters& counters) {
  if constexpr (kConfig.has(kOperand)) {
    each_block(plan.grid, schedule, [&](std::int32_t index) {
      BlockExecutor block(index, kConfig.warps(), params.shared.bytes, schedule, counters);
      WeightGemm<kConfig, kOperand>::run(block, params, params.tables ? params.tables : plan.tables.data());
    });
  }
}

template <WeightConfig kConfig>
RunWeight run_weight_of(const WeightConfig& config, Operand operand) {
  if (!(config == kConfig)) return nullptr;
  constexpr RunWeight runs[kOperands] = {
      run_weight_blocks<kConfig, Operand::tf32>, run_weight_blocks<kConfig, Operand::ieee>,
      run_weight_blocks<kConfig, Operand::bfloat16>, run_weight_blocks<kConfig, Operand::float16>};
  return runs[int(operand)];
}

using RunOuter = void (*)(const OuterPlan&, const OuterParams&, const Schedule&, Counters&);

template <OuterConfig kConfig, Operand kOperand, Innermost kInner>
void run_outer_blocks(const OuterPlan& plan, const OuterParams& params, const Schedule& schedule, Counters& counters) {
  each_block(plan.grid, schedule, [&](std::int32_t index) {
    WarpgroupBlock block(index, std::int32_t(plan.grid), kConfig.groups, kConfig.loaders() / 32, 0, 0, {},
                         params.shared.bytes, schedule, counters);
    OuterGemm<kConfig, kOperand, kInner>::run(block, params, params.tables ? params.tables : plan.tables.data());
  });
}

template <OuterConfig kConfig, Innermost kInner>
RunOuter run_outer_of(Operand operand) {
  constexpr RunOuter runs[kOperands] = {run_outer_blocks<kConfig, Operand::tf32, kInner>, nullptr,
                                        run_outer_blocks<kConfig, Operand::bfloat16, kInner>,
                                        run_outer_blocks<kConfig, Operand::float16, kInner>};
  return runs[int(operand)];
}

template <OuterConfig kConfig>
RunOuter run_outer_of(const OuterPlan& plan) {
  if (!(plan.config == kConfig)) return nullptr;
  return plan.inner == Innermost::pixels ? run_outer_of<kConfig, Innermost::pixels>(plan.operand)
                                         : run_outer_of<kConfig, Innermost::channels>(plan.operand);
}

// Of a weight gradient whose products have been made.
template <class S, class Plan>
void sum_up(const Plan& plan, const void* partial, void* result) {
  run_sum<S>({plan.sum, static_cast<const typename SumPartials<S>::T*>(partial), static_cast<S*>(result)});
}

template <class Plan, class Params>
void sum_up(const Plan& plan, const Params& params, const Pointers& pointers) {
  if (!params.partial) return;
  with_storage(plan.dtype, [&]<class S>(std::type_identity<S>) { sum_up<S>(plan, params.result, pointers.filter); });
}

// Tables that do not travel with the parameters are in the workspace first.
template <class Plan>
void place_tables(const Plan& plan, const Pointers& pointers) {
  if (!plan.carried()) std::memcpy(pointers.workspace, plan.tables.data(), plan.tables.size());
}

}  // namespace

Counters simulate(const WeightPlan& plan, const Pointers& pointers, const Schedule& schedule) {
  const WeightParams params = bind(plan, pointers);
  place_tables(plan, pointers);
  Counters counters;
  for (const RunWeight run : {
#define CONVT_WEIGHT_CONFIG(...) run_weight_of<WeightConfig{__VA_ARGS__}>(plan.config, plan.operand),
#include "config/weight_configs.def"
#undef CONVT_WEIGHT_CONFIG
       }) {
    if (run != nullptr) run(plan, params, schedule, counters);
  }
  sum_up(plan, params, pointers);
  return counters;
}

Counters simulate(const OuterPlan& plan, const Pointers& pointers, const Schedule& schedule) {
  const OuterLaunch launch = bind(plan, pointers);
  const OuterParams& params = launch.outer;
  for (const TurnParams& turn : launch.turns) run_turn(turn, plan.operand, schedule.order == 1);
  place_tables(plan, pointers);
  Counters counters;
  for (const RunOuter run : {
#define CONVT_OUTER_CONFIG(...) run_outer_of<OuterConfig{__VA_ARGS__}>(plan),
#include "config/outer_configs.def"
#undef CONVT_OUTER_CONFIG
       }) {
    if (run != nullptr) run(plan, params, schedule, counters);
  }
  sum_up(plan, params, pointers);
  return counters;
}

}  // namespace convt::simulator
