#include "binding/cuda_explain.hpp"

#include <nanobind/stl/string.h>

#include <algorithm>

#include "geometry/patch.hpp"
#ifdef CONVT_WITH_CUDA
#include "launch/operator_launch.hpp"
#endif

namespace nb = nanobind;

namespace convt::binding {
namespace {

void tell_cost(nb::dict& told, const GemmCost& cost) {
  told["bytes_predicted"] = cost.bytes;
  told["bound"] = cost.bound();
  nb::dict terms;
  terms["tensor"] = cost.tensor;
  terms["shared"] = cost.shared;
  terms["issue"] = cost.issue;
  terms["l2"] = cost.l2;
  terms["memory"] = cost.memory;
  if (cost.turning > 0) terms["turning"] = cost.turning;
  told["terms_us"] = terms;
}

nb::dict explain_family(const GemmPlan& plan) {
  const GemmParams& params = plan.params;
  nb::dict told;
  constexpr const char* axes[kTileAxes] = {"n", "d", "h", "w"};
  nb::dict tile, tiles, origin;
  tile["rows"] = plan.config.rows;
  tile["pixels"] = plan.config.pixels;
  for (int axis = 0; axis < kTileAxes; ++axis) {
    tile[axes[axis]] = params.axes[axis].tile;
    tiles[axes[axis]] = params.axes[axis].tiles;
    if (axis > 0) origin[axes[axis]] = plan.origin[axis - 1] == Origin::aligned ? "aligned" : "padded";
  }
  tile["output_channels"] = params.block_channels;
  tile["input_channels"] = plan.config.planes * operand_vector(plan.operand);
  told["tile"] = tile;
  told["tiles"] = tiles;
  told["origin"] = origin;
  told["operand"] = name_of(plan.operand);
  told["phase_blocks"] = params.phase_blocks;
  told["channel_blocks"] = params.channel_blocks;
  told["way_out"] = name_of(params.way_out);
  told["chunks"] = params.chunks;
  told["shifts"] = params.steps;
  told["split"] = params.splits;
  told["grid"] = plan.grid;
  told["threads"] = plan.config.block_threads(plan.way);
  told["way_in"] = name_of(plan.way);
  told["patch_stages"] = params.shared.patch_stages;
  told["row_stages"] = params.shared.row_stages;
  told["slice_stages"] = params.shared.slice_stages;
  told["shared_bytes"] = params.shared.bytes;
  told["input_vectors"] = params.input_vectors != 0;
  told["output_vectors"] = params.output_channels_inner ? params.output_vectors != 0 : true;
  nb::list phases;   // along D, H and W, of every position
  for (int axis = 1; axis < kTileAxes; ++axis) phases.append(params.axes[axis].stride);
  told["output_phases"] = nb::tuple(phases);
  tell_cost(told, plan.cost);
  return told;
}

nb::dict explain_family(const WeightPlan& plan) {
  const WeightParams& params = plan.params;
  constexpr const char* axes[kTileAxes] = {"n", "d", "h", "w"};
  nb::dict told, tile, tiles;
  tile["rows"] = plan.config.rows;
  tile["columns"] = plan.config.columns;
  tile["input_channels"] = std::min(plan.config.rows, params.in_channels);
  tile["output_channels"] = std::min(params.block_octets * kOctet, params.out_channels);
  tile["taps"] = plan.taps;
  tile["pixels"] = plan.config.pixels;
  for (int axis = 0; axis < kTileAxes; ++axis) {
    tile[axes[axis]] = params.patch.axes[axis].tile;
    tiles[axes[axis]] = params.patch.axes[axis].tiles;
  }
  told["tile"] = tile;
  told["tiles"] = tiles;
  told["origin"] = nb::none();
  told["operand"] = name_of(plan.operand);
  told["channel_blocks"] = params.row_blocks * params.channel_blocks;
  told["tap_blocks"] = params.tap_blocks;
  told["patch_pixels"] = params.pixels;
  told["split"] = params.splits;
  told["grid"] = plan.grid;
  told["threads"] = plan.config.threads();
  told["shared_bytes"] = params.shared.bytes;
  told["input_vectors"] = params.input_vectors != 0;
  told["output_vectors"] = params.patch_vectors != 0;
  tell_cost(told, plan.cost);
  return told;
}

nb::dict explain_family(const OuterPlan& plan) {
  const OuterParams& params = plan.params;
  constexpr const char* axes[kTileAxes] = {"n", "d", "h", "w"};
  nb::dict told, tile, tiles;
  tile["rows"] = plan.config.channels;
  tile["columns"] = plan.config.rows();
  tile["input_channels"] = std::min(plan.config.channels, params.in_channels);
  tile["output_channels"] = std::min(params.block_octets * kOctet, params.out_channels);
  tile["taps"] = plan.taps;
  tile["pixels"] = plan.config.pixels(plan.operand);
  for (int axis = 0; axis < kTileAxes; ++axis) {
    tile[axes[axis]] = params.axes[axis].tile;
    tiles[axes[axis]] = params.axes[axis].tiles;
  }
  told["tile"] = tile;
  told["tiles"] = tiles;
  told["origin"] = nb::none();
  told["operand"] = name_of(plan.operand);
  told["channel_blocks"] = params.row_blocks * params.channel_blocks;
  told["tap_blocks"] = params.tap_blocks;
  told["patch_pixels"] = params.patch_pixels;
  told["split"] = params.splits;
  told["grid"] = plan.grid;
  told["threads"] = plan.config.block_threads();
  told["stages"] = params.stages;
  const auto copied = [&](bool by_registers, std::int32_t piece) {
    const int bytes = operand_bytes(plan.operand);
    return by_registers ? bytes : plan.inner == Innermost::channels ? 16 : piece * bytes;
  };
  told["input_bytes"] = copied(params.input_by_registers, params.input_piece);   // at a time
  told["patch_bytes"] = copied(params.patch_by_registers, params.patch_piece);
  told["patch_phases"] = params.axes[3].phases;
  nb::list turned;
  if (plan.input) turned.append("input");
  if (plan.patch) turned.append("grad_output");
  told["turned"] = turned;
  told["shared_bytes"] = params.shared.bytes;
  tell_cost(told, plan.cost);
  return told;
}

nb::dict terms_of(const DirectCost& cost) {
  nb::dict terms;
  terms["issue"] = cost.issue;
  terms["memory"] = cost.memory;
  terms["overhead"] = cost.overhead;
  return terms;
}

nb::dict explain_depthwise(const DepthwiseLaunch& launch) {
  const DepthwiseShape& shape = launch.shape;
  constexpr const char* lanes[] = {"rows", "channels", "channel_vectors"};
  nb::dict told, tile;
  tile["output_channels"] = shape.lane_groups * shape.stacked_groups * shape.group_out;
  tile["d"] = shape.axis[0].tile;
  if (shape.fold_output) {
    // A row stands for so many outputs of the one axis there is.
    tile["w"] = shape.axis[1].tile * shape.fold_output;
  } else {
    tile["h"] = shape.axis[1].tile;
    tile["w"] = shape.axis[2].tile;
  }
  told["tile"] = tile;
  told["lanes"] = lanes[int(launch.lanes)];
  told["split"] = 1;
  return told;
}

nb::dict explain_depthwise(const DepthwiseGradientLaunch& launch) {
  const DepthwiseGradientShape& shape = launch.shape;
  nb::dict told, tile;
  tile["input_channels"] = shape.block_groups * shape.group_in;
  tile["d"] = shape.axis[0].tile;
  tile["h"] = shape.axis[1].tile;
  tile["w"] = shape.axis[2].tile;
  told["tile"] = tile;
  told["lanes"] = shape.channels_inner ? "channels" : "rows";
  told["split"] = shape.splits;
  return told;
}

nb::dict explain_family(const DepthwisePlan& plan) {
  nb::dict told = std::visit([](const auto& chosen) { return explain_depthwise(chosen); }, plan.launch);
  const DepthwiseGrid& launch = plan.grid(true);
  told["origin"] = nb::none();
  told["grid"] = launch.grid;
  told["threads"] = launch.threads;
  told["shared_bytes"] = launch.shared_bytes;
  told["bytes_predicted"] = plan.bytes_predicted;
  told["bound"] = launch.cost.bound();
  told["terms_us"] = terms_of(launch.cost);
  return told;
}

nb::dict explain_family(const SimtPlan& plan) {
  const SimtShape& shape = plan.shape;
  nb::dict told, tile;
  // A weight gradient's columns are (output channel, tap).
  tile[plan.op == Operator::forward ? "output_channels" : "input_channels"] = SimtLayout::tile_channels(shape);
  tile[plan.op == Operator::grad_weight ? "columns" : "pixels"] = SimtLayout::tile_pixels(shape);
  tile["products"] = SimtLayout::chunk_of(shape);
  told["tile"] = tile;
  told["origin"] = nb::none();
  told["split"] = (1 << shape.slices_log2) * shape.splits;   // inside a thread block, and among blocks
  told["grid"] = plan.grid;
  told["threads"] = plan.threads;
  told["shared_bytes"] = plan.shared_bytes;
  told["bytes_predicted"] = plan.bytes_predicted;
  told["bound"] = plan.cost.bound();
  told["terms_us"] = terms_of(plan.cost);
  return told;
}

// Multiply-adds per second, times two, that this GPU's units can do.
double peak_flops(const Request& request, const DeviceTraits& device) {
  const double per_cycle = device.multiprocessors * device.clock_ghz * 1e9;
  const bool hopper = device.capability >= 90;
  if (request.dtype == DType::float64) return per_cycle * (hopper ? 128 : 64);
  const double half = per_cycle * (hopper ? 4096 : 2048);
  if (request.dtype != DType::float32) return half;
  return request.precision == Precision::tf32 ? half / 2 : half / 6;
}

}  // namespace

nb::dict explain(const OperatorPlan& plan) {
  nb::dict told = std::visit([](const auto& chosen) { return explain_family(chosen); }, plan.chosen);
  const Problem& problem = plan.request.problem;
  std::int64_t total = 1, reached = 1, macs = problem.batch * problem.in_channels * problem.group_out_channels();
  for (const Axis& axis : problem.axes) {
    total *= axis.stride;
    reached *= std::min(tap_period(axis), axis.filter);
    std::int64_t pairs = 0;
    for (std::int64_t tap = 0; tap < axis.filter; ++tap) pairs += tap_input_range(axis, tap).size();
    macs *= pairs;
  }
  const double bytes = double(storage_bytes(plan.request.dtype)) *
                       double(problem.batch * problem.in_channels * problem.input_pixels() +
                              problem.batch * problem.out_channels * problem.output_pixels() +
                              problem.in_channels * problem.group_out_channels() * problem.taps());
  nb::dict phases;
  phases["total"] = total;
  phases["nonempty"] = reached;
  told["phases"] = phases;
  told["taps"] = problem.taps();
  told["flops"] = 2.0 * double(macs);
  told["bytes_minimum"] = bytes;
  told["roofline_us"] = 1e6 * std::max(2.0 * double(macs) / peak_flops(plan.request, plan.device),
                                       bytes / (plan.device.memory_gbs * 1e9));
  told["kernel"] = plan.kernel();
  told["config"] = plan.config();
  told["workspace_bytes"] = plan.workspace_bytes();
  told["predicted_us"] = plan.predicted_us();
  nb::list candidates;
  for (const PlanCandidate& candidate : plan.candidates) {
    nb::dict entry;
    entry["name"] = candidate.name;
    entry["predicted_us"] = candidate.reason.empty() ? nb::object(nb::float_(candidate.predicted_us)) : nb::none();
    entry["reason"] = candidate.reason.empty() ? nb::none() : nb::object(nb::str(candidate.reason.c_str()));
    candidates.append(entry);
  }
  told["candidates"] = candidates;
  told["registers"] = nb::none();
#ifdef CONVT_WITH_CUDA
  if (const auto resources = operator_resources(plan)) told["registers"] = resources->registers;
#endif
  return told;
}

}  // namespace convt::binding
