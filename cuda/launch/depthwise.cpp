#include "launch/depthwise.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "launch/depthwise_gradient.hpp"
#include "launch/sum_partials.hpp"

namespace convt {
namespace {

constexpr std::int64_t kLargest = 1 << 30;         // of any extent or position along an axis
constexpr std::int64_t kMaxGroupChannels = 4;
constexpr std::int64_t kMaxPhaseEntries = 1024;
constexpr std::int64_t kFilterBudget = 48 * 1024;  // bytes of shared memory, where channels are contiguous
constexpr int kThreads = 256;

// One way to cut the problem up, before it is written down as a shape.
struct Choice {
  DepthwiseLanes lanes;
  std::int64_t tile_w;               // output columns of a block
  std::int64_t lane_groups;          // groups side by side
  std::int64_t stacked_groups;
  std::int64_t row_blocks;           // blocks of rows * stride outputs along H
  std::int64_t tile_d;               // output planes
  bool fold;
};

bool is_trivial(const Axis& axis) {
  return axis.input == 1 && axis.filter == 1 && axis.stride == 1 && axis.padding == 0 && axis.output() == 1;
}

std::int64_t max_shift(const Axis& axis) { return axis.dilation * (axis.filter - 1) / axis.stride; }

std::string refusal(const Problem& problem) {
  if (problem.group_in_channels() > kMaxGroupChannels || problem.group_out_channels() > kMaxGroupChannels) {
    return "a group has " + std::to_string(problem.group_in_channels()) + " input and " +
           std::to_string(problem.group_out_channels()) + " output channels; depthwise takes at most 4 of each";
  }
  std::int64_t strides = 0;
  for (const Axis& axis : problem.axes) {
    strides += axis.stride;
    if (axis.input >= kLargest || axis.output() + axis.padding >= kLargest || axis.stride >= kLargest ||
        axis.dilation >= kLargest || axis.filter >= kLargest || axis.dilation * axis.filter >= kLargest) {
      return "an axis is longer than 2**30 pixels";
    }
  }
  if (strides > kMaxPhaseEntries) return "the strides add up to " + std::to_string(strides) + ", over 1024";
  if (problem.taps() > (1 << 20)) return "the filter has " + std::to_string(problem.taps()) + " taps, over 2**20";
  if (std::max(problem.in_channels, problem.out_channels) >= kLargest || problem.batch >= kLargest) {
    return "more than 2**30 channels or images";
  }
  return {};
}

DepthwiseAxis axis_of(const Axis& axis, std::int64_t tile) {
  DepthwiseAxis to{};
  to.taps = tap_solver(axis);
  to.input = std::int32_t(axis.input);
  to.output = std::int32_t(axis.output());
  to.padding = std::int32_t(axis.padding);
  to.tile = std::int32_t(tile);
  to.max_shift = std::int32_t(max_shift(axis));
  to.period = std::int32_t(to.taps.period);
  to.shift_step = std::int32_t(axis.dilation / to.taps.gcd);
  // The last output of a tile may lie stride - 1 phases further into its q than the first.
  to.patch = std::int32_t((tile + axis.stride - 2) / axis.stride + 1 + to.max_shift);
  to.by_stride = FastDivisor(axis.stride);
  return to;
}

// 16-byte vectors of channels that never straddle a pixel.
bool vectors_fit(const Request& request, std::int64_t vector) {
  const Problem& problem = request.problem;
  if (problem.group_in_channels() != 1 || problem.group_out_channels() != 1 || problem.in_channels % vector) {
    return false;
  }
  const auto aligned = [&](const Strides& strides, std::int64_t (*extent)(const Axis&)) {
    bool fits = strides[1] == 1 && (problem.batch == 1 || strides[0] % vector == 0);
    for (int a = 0; a < kAxes; ++a) fits = fits && (extent(problem.axes[a]) == 1 || strides[2 + a] % vector == 0);
    return fits;
  };
  return aligned(request.input, [](const Axis& axis) { return axis.input; }) &&
         aligned(request.output, [](const Axis& axis) { return axis.output(); });
}

// Memory and issue time, rounded up to whole waves of thread blocks. Instructions per item
// were counted in the source; a multiprocessor issues 4 warp instructions per clock, 70 % of them in practice.
DirectCost predict(const Request& request, const DeviceTraits& device, const DepthwiseLaunch& launch,
                   std::int64_t bytes) {
  const DepthwiseShape& shape = launch.shape;
  const Problem& problem = request.problem;
  const bool rows = launch.lanes == DepthwiseLanes::rows;
  const double item_rows = rows ? depthwise_rows(storage_bytes(request.dtype)) : kDepthwiseChannelsRows;
  const double vector =
      launch.lanes == DepthwiseLanes::channel_vectors ? 16.0 / double(storage_bytes(request.dtype)) : 1;
  const double fma = request.dtype == DType::float64 ? 2 : 1;
  const auto taps = [&](int a) { return double(problem.axes[a].filter) / double(problem.axes[a].stride); };
  const double columns = double(shape.group_in) * taps(0) * taps(2), column = shape.fold_input ? 1 : taps(1);
  double load = 200, item = 70;
  if (rows) {
    const double slabs = double(shape.stacked_groups) * shape.axis[0].patch;
    load += slabs * std::ceil(double(shape.axis[1].patch) / (4.0 * shape.patch_lanes)) * 50;
    item += columns * (10 + column * (1 + item_rows * fma + item_rows / std::min(2.0, std::max(1.0, column)))) +
            item_rows * 6;
  } else {
    const double conversions = storage_bytes(request.dtype) == 2 ? vector : 0;
    item += columns * (25 + column * (4 + vector / 4 + item_rows * vector * fma) +
                       (item_rows + column - 1) * (12 + conversions)) +
            item_rows * (6 + conversions);
  }
  if (shape.filter_in_shared) {
    const double elements =
        double(shape.lane_groups) * shape.stacked_groups * shape.group_out * shape.group_in * shape.taps;
    load += std::ceil(elements / launch.threads) * 45;
  }
  const double per_thread = std::ceil(double(depthwise_items(shape)) / shape.lane_rows);
  const double block = (load + per_thread * item) * std::ceil(launch.threads / 32.0);   // warp instructions
  const double registers = rows                              ? (request.dtype == DType::float32   ? 64
                                                                : request.dtype == DType::float64 ? 128
                                                                                                  : 80)
                           : vector == 1                     ? 72
                           : request.dtype == DType::float32 ? 96
                                                             : 128;
  const double resident = std::max(
      1.0, std::floor(std::min({2048.0 / launch.threads,
                                double(device.registers_per_multiprocessor) / (registers * launch.threads),
                                double(device.shared_per_multiprocessor) / double(launch.shared_bytes + 1024)})));
  const double waves = double(launch.grid) / (device.multiprocessors * resident);
  const double clock = device.clock_ghz * 1e3;                                          // per microsecond
  const double issue = block * double(launch.grid) / (device.multiprocessors * 4 * 0.7 * clock);
  // Sectors of 32 bytes are moved whole.
  const auto waste = [&](const Strides& strides, double run) {
    const double size = double(storage_bytes(request.dtype));
    const double lane_bytes = strides[rows ? 4 : 1] == 1 ? run * size : size;
    return lane_bytes >= 32 ? 1.0 : 32.0 / lane_bytes;
  };
  const bool whole_rows = rows && shape.axis[2].tile == problem.axes[2].output();
  const double run = rows ? (whole_rows ? 32.0 : shape.axis[2].tile) : shape.lanes * vector;
  const double memory = double(bytes) * waste(request.output, run) / (device.memory_gbs * 0.92e3);
  const double rounded = std::min(std::ceil(waves) / waves, 1 + 1 / waves);
  return {issue * rounded, memory * rounded, 3 + 1.2 * std::ceil(waves) / resident};
}

// The launch of a choice; no grid when it does not fit.
DepthwiseLaunch launch_of(const Request& request, const DeviceTraits& device, const Choice& choice,
                          std::int64_t bytes) {
  const Problem& problem = request.problem;
  const bool rows = choice.lanes == DepthwiseLanes::rows;
  const std::int64_t vector = choice.lanes == DepthwiseLanes::channel_vectors ? 16 / storage_bytes(request.dtype) : 1;
  const std::int64_t item_rows = rows ? depthwise_rows(storage_bytes(request.dtype)) : kDepthwiseChannelsRows;
  const std::int64_t group_in = problem.group_in_channels(), group_out = problem.group_out_channels();
  std::array<Axis, kAxes> axes = problem.axes;
  DepthwiseLaunch launch;
  launch.lanes = choice.lanes;
  DepthwiseShape& shape = launch.shape;
  for (int i = 0; i < 2 + kAxes; ++i) {
    shape.strides.input[i] = request.input[i];
    shape.strides.filter[i] = request.filter[i];
    shape.strides.output[i] = request.output[i];
  }
  shape.strides.bias = request.bias_stride;
  if (choice.fold) {
    // Rows of tile_w outputs each; a whole number of strides, so that all have the same phases.
    shape.fold_output = std::int32_t(choice.tile_w);
    shape.fold_input = std::int32_t(choice.tile_w / axes[2].stride);
    axes[1].input = ceil_div(axes[2].output(), choice.tile_w);
    shape.strides.input[3] = shape.fold_input * request.input[4];
    shape.strides.output[3] = shape.fold_output * request.output[4];
  }
  const std::int64_t tile_h = choice.row_blocks * item_rows * axes[1].stride;
  shape.axis[0] = axis_of(axes[0], choice.tile_d);
  shape.axis[1] = axis_of(axes[1], tile_h);
  shape.axis[2] = axis_of(axes[2], choice.tile_w);
  // Tiles of H start at multiples of the stride.
  shape.axis[1].patch =
      std::int32_t(choice.row_blocks * item_rows + (axes[1].padding % axes[1].stride != 0) + shape.axis[1].max_shift);
  shape.axis[0].filter_step = std::int32_t(problem.axes[1].filter * problem.axes[2].filter);
  shape.axis[1].filter_step = std::int32_t(problem.axes[2].filter);
  shape.axis[2].filter_step = 1;
  shape.axis[1].phase_begin = std::int32_t(axes[0].stride);
  shape.axis[2].phase_begin = std::int32_t(axes[0].stride + axes[1].stride);
  shape.phases = std::int32_t(axes[0].stride + axes[1].stride + axes[2].stride);
  shape.groups = std::int32_t(problem.groups);
  shape.group_in = std::int32_t(group_in);
  shape.group_out = std::int32_t(group_out);
  shape.taps = std::int32_t(problem.taps());
  shape.lane_groups = std::int32_t(choice.lane_groups);
  shape.stacked_groups = std::int32_t(choice.stacked_groups);
  shape.by_tile_w = FastDivisor(choice.tile_w);
  shape.by_channels_in = FastDivisor(group_in);
  shape.by_channels_out = FastDivisor(group_out);
  shape.by_taps = FastDivisor(problem.taps());
  shape.by_taps_w = FastDivisor(problem.axes[2].filter);
  shape.by_taps_hw = FastDivisor(shape.axis[0].filter_step);
  shape.by_row_phases = FastDivisor(choice.row_blocks * axes[1].stride);
  shape.by_tile_d = FastDivisor(choice.tile_d);

  const std::int64_t channel_blocks = ceil_div(problem.groups, choice.lane_groups * choice.stacked_groups);
  std::int64_t tiles[kAxes];
  double grid = double(problem.batch) * double(channel_blocks);
  for (int a = 0; a < kAxes; ++a) {
    tiles[a] = choice.fold && a == 2 ? 1 : ceil_div(axes[a].output(), shape.axis[a].tile);
    grid *= double(tiles[a]);
  }
  if (grid >= double(kLargest) * 2 - 1) return launch;
  for (int a = 0; a < kAxes; ++a) shape.by_tiles[a] = FastDivisor(tiles[a]);
  shape.by_channel_blocks = FastDivisor(channel_blocks);

  const std::int64_t items = depthwise_items(shape);
  std::int64_t row_threads;
  if (rows) {
    shape.lanes = std::int32_t(choice.lane_groups * group_out * choice.tile_w);
    row_threads = shape.lanes;
    shape.patch_width = std::int32_t(choice.lane_groups * group_in * shape.axis[2].patch);
    if (shape.patch_width > kDepthwisePitch) return launch;
  } else {
    shape.lanes = std::int32_t(choice.lane_groups * group_out / vector);
    row_threads = shape.lanes * choice.tile_w;
  }
  if (row_threads > kThreads || row_threads < 1) return launch;
  shape.lane_rows = std::int32_t(std::min(kThreads / row_threads, items));
  launch.threads = int(round_up(std::max<std::int64_t>(row_threads * shape.lane_rows, shape.patch_width), 32));
  if (rows) shape.patch_lanes = launch.threads / shape.patch_width;

  const std::int64_t accumulator = accumulator_bytes(request.dtype);
  const std::int64_t filter_bytes =
      choice.lane_groups * choice.stacked_groups * group_out * group_in * problem.taps() * accumulator;
  shape.filter_in_shared = rows || vector > 1 || filter_bytes <= kFilterBudget;
  shape.filter_bytes = std::int32_t(shape.phases * std::int64_t(sizeof(DepthwisePhase)));
  const std::int64_t patch_bytes = round_up(shape.filter_bytes + (shape.filter_in_shared ? filter_bytes : 0), 16);
  launch.shared_bytes = patch_bytes;
  if (rows) {
    launch.shared_bytes +=
        choice.stacked_groups * shape.axis[0].patch * std::int64_t(shape.axis[1].patch) * kDepthwisePitch * accumulator;
  }
  if (launch.shared_bytes > device.shared_per_block) return launch;
  shape.patch_bytes = std::int32_t(patch_bytes);
  launch.grid = std::int64_t(grid);
  launch.cost = predict(request, device, launch, bytes);
  return launch;
}

std::vector<std::int64_t> sorted_unique(std::vector<std::int64_t> values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

// The best launch with lanes of this kind; no grid when there is none.
DepthwiseLaunch best_launch(const Request& request, const DeviceTraits& device, DepthwiseLanes lanes,
                            std::int64_t bytes) {
  const Problem& problem = request.problem;
  const Axis &d = problem.axes[0], &h = problem.axes[1], &w = problem.axes[2];
  const bool rows = lanes == DepthwiseLanes::rows;
  const std::int64_t item_rows = rows ? depthwise_rows(storage_bytes(request.dtype)) : kDepthwiseChannelsRows;
  const std::int64_t vector = lanes == DepthwiseLanes::channel_vectors ? 16 / storage_bytes(request.dtype) : 1;
  const bool can_fold = is_trivial(d) && is_trivial(h);
  const std::int64_t planes = d.output();
  const auto planes_of =
      sorted_unique({1, std::min(planes, d.stride), std::min(planes, 2 * d.stride), std::min(planes, 4 * d.stride)});
  DepthwiseLaunch best;
  const auto consider = [&](std::int64_t tile_w, std::int64_t lane_groups, bool fold) {
    const std::int64_t out_rows = fold ? ceil_div(w.output(), tile_w) : h.output();
    const std::int64_t row_stride = fold ? 1 : h.stride;
    for (std::int64_t row_blocks = 1; row_blocks <= 4; row_blocks *= 2) {
      if (row_blocks > 1 && row_blocks / 2 * item_rows * row_stride >= out_rows) break;
      for (const std::int64_t tile_d : planes_of) {
        for (std::int64_t stack = 1; stack <= (rows ? 8 : 1); stack *= 2) {
          if (stack > 1 && stack / 2 * lane_groups >= problem.groups) break;
          const DepthwiseLaunch launch =
              launch_of(request, device, {lanes, tile_w, lane_groups, stack, row_blocks, tile_d, fold}, bytes);
          if (launch.grid && (!best.grid || launch.cost.total() < best.cost.total())) best = launch;
        }
      }
    }
  };
  for (const bool fold : {false, true}) {
    if (fold && !can_fold) continue;
    std::vector<std::int64_t> widths;
    for (std::int64_t width = 1; width <= kThreads; width *= 2) {
      if (fold) {
        widths.push_back(round_up(width, w.stride));
      } else {
        widths.push_back(std::min(width, w.output()));
      }
    }
    if (!fold) widths.push_back(w.output());
    for (const std::int64_t tile_w : sorted_unique(widths)) {
      if (tile_w > kThreads) continue;
      std::vector<std::int64_t> groups;
      if (rows) {
        for (std::int64_t beside = 1; beside * tile_w <= kThreads && beside <= problem.groups; beside *= 2) {
          groups.push_back(beside);
        }
        groups.push_back(
            std::clamp<std::int64_t>(kThreads / (tile_w * problem.group_out_channels()), 1, problem.groups));
      } else {
        for (std::int64_t beside = vector; beside / vector <= kThreads; beside *= 2) {
          groups.push_back(std::min(beside, problem.groups));
        }
      }
      for (const std::int64_t lane_groups : sorted_unique(groups)) consider(tile_w, lane_groups, fold);
    }
  }
  return best;
}

std::string name_of(const DepthwiseLaunch& launch) {
  const char* const kind = launch.lanes == DepthwiseLanes::rows       ? "rows"
                           : launch.lanes == DepthwiseLanes::channels ? "channels"
                                                                      : "vectors";
  const DepthwiseShape& shape = launch.shape;
  return kind + std::to_string(shape.lane_groups * shape.stacked_groups * shape.group_out) + "x" +
         std::to_string(shape.axis[0].tile) + "x" + std::to_string(shape.axis[1].tile) + "x" +
         std::to_string(shape.axis[2].tile);
}

}  // namespace

std::variant<DepthwisePlan, std::string> plan_depthwise(const Request& request, const DeviceTraits& device) {
  const Problem& problem = request.problem;
  if (std::string reason = refusal(problem); !reason.empty()) return reason;
  DepthwisePlan plan;
  plan.op = request.op;
  plan.dtype = request.dtype;
  const std::int64_t pixels =
      problem.batch * (problem.in_channels * problem.input_pixels() + problem.out_channels * problem.output_pixels());
  plan.bytes_predicted =
      storage_bytes(request.dtype) * (pixels + problem.in_channels * problem.group_out_channels() * problem.taps());

  constexpr const char* no_tile = "no tile of it fits the shared memory of a thread block";
  if (request.op != Operator::forward) {
    for (const Axis& axis : problem.axes) {
      if (axis.stride * (axis.input + kThreads) + axis.dilation * axis.filter >= kLargest) {
        return "an axis is longer than 2**30 pixels";
      }
    }
    const DepthwiseGradientLaunch launch = plan_depthwise_gradient(request, device, true, plan.bytes_predicted);
    const DepthwiseGradientLaunch unaligned = plan_depthwise_gradient(request, device, false, plan.bytes_predicted);
    if (!launch.grid || !unaligned.grid) return no_tile;
    plan.launch = launch;
    plan.unaligned = unaligned;
    plan.config = name_of(request.op, launch);
    const auto splits = std::max(launch.shape.splits, unaligned.shape.splits);
    if (request.op == Operator::grad_weight && splits > 1) plan.workspace_bytes = partial_bytes(request, splits);
    return plan;
  }

  const bool pixels_contiguous = request.output[4] == 1 || problem.axes[2].output() == 1;
  DepthwiseLaunch rows, channels, vectors;
  if (pixels_contiguous || request.output[1] != 1) {
    rows = best_launch(request, device, DepthwiseLanes::rows, plan.bytes_predicted);
  }
  if (request.output[1] == 1 || !rows.grid) {
    channels = best_launch(request, device, DepthwiseLanes::channels, plan.bytes_predicted);
    if (vectors_fit(request, 16 / storage_bytes(request.dtype))) {
      vectors = best_launch(request, device, DepthwiseLanes::channel_vectors, plan.bytes_predicted);
    }
  }
  const DepthwiseLaunch* best = nullptr;
  for (const DepthwiseLaunch* launch : {&rows, &channels}) {
    if (launch->grid && (!best || launch->cost.total() < best->cost.total())) best = launch;
  }
  if (!best) return no_tile;
  const DepthwiseLaunch& launch = vectors.grid && vectors.cost.total() < best->cost.total() ? vectors : *best;
  plan.unaligned = *best;
  plan.launch = launch;
  plan.config = name_of(launch);
  return plan;
}

}  // namespace convt
