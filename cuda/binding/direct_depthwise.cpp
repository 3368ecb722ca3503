#include "binding/direct_depthwise.hpp"

#include <nanobind/stl/string.h>

#include "launch/depthwise.hpp"
#include "simulator/run_depthwise_gradient.hpp"
#include "simulator/run_direct.hpp"

namespace nb = nanobind;

namespace convt::binding {
namespace {

static_assert(int(simulator::DepthwiseKind::rows) == int(DepthwiseLanes::rows) &&
                  int(simulator::DepthwiseKind::channel_vectors) == int(DepthwiseLanes::channel_vectors),
              "the host runner and the plan number the lanes alike");

void play(const DepthwisePlan& plan, const DepthwiseLaunch& launch, const simulator::DirectRun& run,
          const DirectOperands& data, const Program& program) {
  simulator::run_depthwise(run, plan.dtype, simulator::DepthwiseKind(int(launch.lanes)), launch.shape, data, &program);
}

void play(const DepthwisePlan& plan, const DepthwiseGradientLaunch& launch, const simulator::DirectRun& run,
          const DirectOperands& data, const Program&) {
  if (plan.op == Operator::grad_input) {
    simulator::run_depthwise_grad_input(run, plan.dtype, launch.shape, data);
  } else {
    simulator::run_depthwise_grad_weight(run, plan.dtype, launch.taps, launch.shape, launch.sum, plan.workspace_bytes,
                                         data);
  }
}

}  // namespace

nb::dict run_depthwise(const Request& request, const DirectOperands& data, const Program& program, bool backwards,
                       bool unaligned, bool dry) {
  const auto planned = plan_depthwise(request, DeviceTraits{});
  if (const auto* reason = std::get_if<std::string>(&planned)) throw nb::value_error(("depthwise: " + *reason).c_str());
  const DepthwisePlan& plan = std::get<DepthwisePlan>(planned);
  const DepthwiseGrid& grid = plan.grid(!unaligned);
  nb::dict told;
  told["config"] = plan.config;
  told["predicted_us"] = grid.cost.total();
  told["bytes_predicted"] = plan.bytes_predicted;
  told["workspace_bytes"] = plan.workspace_bytes;
  told["grid"] = grid.grid;
  told["threads"] = grid.threads;
  told["shared_bytes"] = grid.shared_bytes;
  if (dry) return told;
  const nb::gil_scoped_release release;
  const simulator::DirectRun run{grid.grid, grid.threads, grid.shared_bytes, backwards};
  std::visit([&](const auto& launch) { play(plan, launch, run, data, program); },
             unaligned ? plan.unaligned : plan.launch);
  return told;
}

}  // namespace convt::binding
