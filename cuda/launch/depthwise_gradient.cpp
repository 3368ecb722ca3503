#include "launch/depthwise_gradient.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

#include "launch/depthwise_patch.hpp"
#include "launch/sum_partials.hpp"

namespace convt {
namespace {

constexpr double kLargest = 2147483648.0;
constexpr int R = kDepthwisePixels;

// One way to cut the problem up, before it is written down as a shape.
struct Choice {
  bool channels_inner;
  int pitch;                         // of the kernel
  bool fold;                         // a thread's pixels lie along W
  std::int64_t tile[kAxes];          // input pixels
  std::int64_t groups;               // of a block
  int taps;                          // which of kDepthwiseTapSets
  std::int64_t threads;              // at most
  bool all_jobs;                     // as many jobs in a block as there are, and then as many lanes as remain
};

// Taps of a phase along H, and whether they read consecutive pixels of it.
struct RowTaps {
  std::int64_t period, classes, count;
  bool consecutive;
};
RowTaps row_taps(const Axis& axis, bool fold) {
  const TapSolver solver = tap_solver(axis);
  const std::int64_t classes = std::min(solver.period, axis.filter);
  return {solver.period, classes, ceil_div(axis.filter, solver.period), !fold && axis.dilation == solver.gcd};
}

// How much of a transaction of 32 bytes is used when this many bytes are contiguous.
double waste(double run) { return run >= 32 ? 1.0 : 32.0 / run; }
double waste(const DepthwisePatch& patch, std::int64_t size, double columns, double slots) {
  if (patch.strides[4] == 1) return waste(columns >= patch.extent[2] ? 32.0 : columns * double(size));
  if (patch.strides[1] == 1) return waste(slots * double(size));
  return waste(double(size));
}

struct Planner {
  const Request& request;
  const DeviceTraits& device;
  const bool aligned;
  const double bytes;
  const Problem& problem = request.problem;
  const std::int64_t size = storage_bytes(request.dtype), accumulator = accumulator_bytes(request.dtype);
  const bool weights = request.op == Operator::grad_weight;
  const double fma = request.dtype == DType::float64 ? 2 : 1;

  DepthwiseGradientLaunch best{};

  DepthwiseTensor input() const {
    return {request.input,
            problem.batch,
            problem.in_channels,
            {problem.axes[0].input, problem.axes[1].input, problem.axes[2].input}};
  }
  DepthwiseTensor output() const {
    return {request.output,
            problem.batch,
            problem.out_channels,
            {problem.axes[0].output(), problem.axes[1].output(), problem.axes[2].output()}};
  }

  // Everything but the loads of a thread block and the work of its threads on one tile.
  void finish(DepthwiseGradientLaunch& launch, double resident, double block, double latency, double sectors,
              double overhead) {
    const double multiprocessors = device.multiprocessors, clock = device.clock_ghz * 1e3;   // per microsecond
    const double waves = double(launch.grid) / (multiprocessors * resident);
    const double rounded = std::min(std::ceil(waves) / waves, 1 + 1 / waves);
    const DepthwiseGradientShape& shape = launch.shape;
    const double columns = shape.axis[2].tile, groups = shape.block_groups;
    double memory = bytes / (device.memory_gbs * 0.92e3) *
                    std::max(waste(shape.output, size, columns * shape.axis[2].stride, groups * shape.group_out),
                             waste(shape.input, size, columns, groups * shape.group_in));
    memory = std::max(memory, sectors * double(launch.grid) / (multiprocessors * 40 * clock));
    launch.cost.issue = rounded * block * double(launch.grid) / (multiprocessors * 4 * 0.7 * clock);
    launch.cost.memory = rounded * memory;
    // Loads that wait for each other bind when there is little else.
    const double binding = std::max(launch.cost.issue, launch.cost.memory);
    launch.cost.overhead =
        3 + 1.2 * std::ceil(waves) / resident + overhead + std::max(0.0, std::ceil(waves) * latency - binding);
    if (!best.grid || launch.cost.total() < best.cost.total()) best = launch;
  }

  double resident(const DepthwiseGradientLaunch& launch, double registers) const {
    return std::max(
        1.0, std::floor(std::min({32.0, 2048.0 / launch.threads,
                                  double(device.registers_per_multiprocessor) / (registers * launch.threads),
                                  double(device.shared_per_multiprocessor) / double(launch.shared_bytes + 1024)})));
  }

  void consider(const Choice& choice) {
    DepthwiseGradientLaunch launch;
    DepthwiseGradientShape& shape = launch.shape;
    const std::int64_t group_in = problem.group_in_channels(), group_out = problem.group_out_channels();
    const DepthwiseTapSet set = kDepthwiseTapSets[choice.taps];
    const RowTaps rows = row_taps(problem.axes[1], choice.fold);
    const std::int64_t in_slots = choice.groups * group_in, out_slots = choice.groups * group_out;
    const std::int64_t item_rows = choice.fold ? choice.tile[1] : choice.tile[1] / R;
    const std::int64_t item_columns = choice.fold ? choice.tile[2] / R : choice.tile[2];
    const std::int64_t items = choice.tile[0] * item_rows * item_columns;
    const std::int64_t slots = weights ? choice.groups : in_slots;
    launch.taps = choice.taps;

    // Who does what.
    const std::int64_t row_sets = ceil_div(rows.count, set.rows);
    const std::int64_t column_sets = ceil_div(problem.axes[2].filter, set.columns);
    const std::int64_t jobs = group_in * group_out * problem.axes[0].filter * column_sets * rows.classes * row_sets;
    std::int64_t block_jobs = 1, lanes = 1, used = slots * items;
    if (weights) {
      if (slots > choice.threads) return;
      block_jobs = choice.all_jobs ? std::min(jobs, choice.threads / slots) : 1;
      while (lanes < items && slots * block_jobs * lanes * 2 <= choice.threads) lanes *= 2;
      if (!choice.all_jobs) block_jobs = std::min(jobs, choice.threads / (slots * lanes));
      used = slots * block_jobs * lanes;
    }
    launch.threads = int(round_up(std::min(used, choice.threads), 32));

    // Boxes. Jobs at the end of the filter read rows of taps that do not exist.
    std::int64_t last_tap[kAxes], box[kAxes], tile[kAxes];
    for (int a = 0; a < kAxes; ++a) last_tap[a] = problem.axes[a].filter - 1;
    if (weights) last_tap[1] = rows.classes - 1 + rows.period * (set.rows * row_sets - 1);
    double span = 1;
    for (int a = 0; a < kAxes; ++a) {
      const Axis& axis = problem.axes[a];
      tile[a] = choice.tile[a];
      box[a] = axis.stride * (tile[a] - 1) + axis.dilation * last_tap[a] + 1;
      span *= double(box[a]);
    }
    if (span * double(out_slots * accumulator) > double(device.shared_per_block)) return;
    const std::int64_t wider = round_up(choice.groups * std::max(group_in, group_out), 4);
    const std::int64_t column_pitch = choice.channels_inner ? wider : 1;
    const std::int64_t row_pitch = choice.fold ? 0 : choice.pitch;
    const DepthwiseBox read{{box[0], box[1], box[2]}, out_slots,    problem.axes[1].stride,
                            problem.axes[2].stride,   column_pitch, row_pitch};
    const DepthwiseBox multiplied{{tile[0], tile[1], tile[2]}, in_slots, 1, 1, column_pitch, row_pitch};
    std::int64_t end = lay_out(shape.output, output(), read, aligned, size, 0, launch.threads);
    if (end < 0) return;
    const std::int64_t input_end = lay_out(shape.input, input(), multiplied, aligned, size, end, launch.threads);
    if (input_end < 0) return;
    if (weights) {
      end = lay_out_lines(shape.output, accumulator, input_end);
      end = lay_out_lines(shape.input, accumulator, end);
      end = std::max(end, std::int64_t(launch.threads) * set.columns * set.rows);
    } else {
      end = lay_out_lines(shape.output, accumulator, end);
      shape.columns_begin = std::int32_t(end);
      end += round_up(problem.axes[2].filter, 4);
      shape.filter_begin = std::int32_t(end);
      shape.filter_slot_pitch = choice.channels_inner ? 1 : std::int32_t(group_out * problem.taps());
      shape.filter_tap_pitch = choice.channels_inner ? std::int32_t(slots) : 1;
      shape.filter_out_pitch = std::int32_t(problem.taps() * shape.filter_tap_pitch);
      end += slots * group_out * problem.taps();
    }
    launch.shared_bytes = end * accumulator;
    if (launch.shared_bytes > device.shared_per_block) return;

    for (int a = 0; a < kAxes; ++a) {
      const Axis& axis = problem.axes[a];
      shape.axis[a] = {std::int32_t(axis.input),    std::int32_t(tile[a]),      std::int32_t(axis.stride),
                       std::int32_t(axis.dilation), std::int32_t(axis.padding), std::int32_t(axis.filter)};
    }
    for (int i = 0; i < 2 + kAxes; ++i) shape.filter_strides[i] = request.filter[i];
    shape.group_in = std::int32_t(group_in);
    shape.group_out = std::int32_t(group_out);
    shape.groups = std::int32_t(problem.groups);
    shape.block_groups = std::int32_t(choice.groups);
    shape.taps = std::int32_t(problem.taps());
    shape.row_period = std::int32_t(rows.period);
    shape.row_classes = std::int32_t(rows.classes);
    shape.consecutive_rows = rows.consecutive;
    shape.pixel_axis = choice.fold ? 2 : 1;
    shape.pixel_distance = choice.fold ? std::int32_t(item_columns) : 1;
    shape.pitch = choice.pitch;
    shape.output_pitch = choice.fold ? std::int32_t(item_columns * column_pitch) : shape.output.row_pitch;
    shape.input_pitch = choice.fold ? shape.output_pitch : shape.input.row_pitch;
    shape.row_step = std::int32_t(problem.axes[1].dilation / tap_solver(problem.axes[1]).gcd);
    shape.slots = std::int32_t(slots);
    shape.items = std::int32_t(items);
    shape.channels_inner = choice.channels_inner;
    shape.jobs = std::int32_t(jobs);
    shape.block_jobs = std::int32_t(block_jobs);
    shape.lanes = std::int32_t(lanes);
    shape.row_sets = std::int32_t(row_sets);
    shape.column_sets = std::int32_t(column_sets);

    const std::int64_t channel_blocks = ceil_div(problem.groups, choice.groups);
    const std::int64_t job_blocks = ceil_div(jobs, block_jobs);
    double tiles = double(problem.batch);
    for (int a = 0; a < kAxes; ++a) tiles *= double(ceil_div(problem.axes[a].input, tile[a]));
    const double blocks = double(channel_blocks) * (weights ? double(job_blocks) : tiles);
    if (tiles >= kLargest - 1 || blocks >= kLargest - 1) return;
    shape.tiles = std::int32_t(tiles);
    shape.splits = 1;

    // Instructions were counted in the source.
    const double warps = launch.threads / 32.0;
    DepthwiseLoadCost load = load_cost(shape.output, launch.threads, size);
    if (weights) {
      const DepthwiseLoadCost more = load_cost(shape.input, launch.threads, size);
      load.instructions += more.instructions;
      load.rounds += more.rounds;
      load.sectors += more.sectors;
      const double columns = set.columns, taps = set.rows;
      const double loads = choice.pitch ? 1 : 2;   // with an address of its own each
      const double item = 75 + R * loads + columns * ((R + taps - 1) * loads + R * taps * fma);
      const double work = std::ceil(double(items) / double(lanes)) * item;
      const double tile_block = (load.instructions + work + 80) * warps;
      const double tile_latency = 0.5 * load.rounds + 0.4 + work * 0.004;
      const double once = (400 + std::log2(double(lanes)) * 60) * warps;
      const double registers = size == 8 ? 128 : 80;
      const double fit = resident(launch, registers);
      const double partial = double(partial_bytes(request, 1));
      const double once_latency = 1 + 0.1 * std::log2(double(lanes));
      std::int64_t last = 0;
      for (const double waves : {0.5, 1.0, 2.0, 4.0, 8.0}) {
        const auto splits =
            std::int64_t(std::clamp(waves * device.multiprocessors * fit / blocks, 1.0, std::min(tiles, 65535.0)));
        const double partials = splits == 1 ? 0 : 2 * partial * double(splits);
        if (splits == last || blocks * double(splits) >= kLargest - 1) continue;
        if (last && partials > std::max(bytes / 8, 1e6)) break;
        last = splits;
        shape.splits = std::int32_t(splits);
        launch.grid = std::int64_t(blocks) * splits;
        const double each = tiles / double(splits);
        finish(launch, fit, each * tile_block + once, std::ceil(each) * tile_latency + once_latency,
               each * load.sectors, splits == 1 ? 0 : 2.5 + partials / (device.memory_gbs * 1e3));
      }
      return;
    }
    launch.grid = std::int64_t(blocks);
    const double count = double(rows.count), sets = rows.consecutive ? std::ceil(count / 3) : count;
    const double loads = choice.pitch ? 1 : 2;   // with an address of its own each
    const double column = sets * (5 + R * loads) + count * (2 + R * fma);
    const double plane = 40 + double(rows.classes) * (30 + sets * 8 + double(problem.axes[2].filter) * column);
    const double item = 110 + double(group_out) * double(problem.axes[0].filter) * plane;
    load.instructions += 67 * std::ceil(double(slots * group_out * problem.taps()) / launch.threads);
    const double work = std::ceil(double(slots * items) / launch.threads) * item;
    const double registers = size == 8 ? 128 : choice.pitch ? 64 : 80;
    finish(launch, resident(launch, registers), (250 + load.instructions + work) * warps,
           0.5 * load.rounds + 0.8 + work * 0.004, load.sectors, 0);
  }

  // Tiles along W whose columns fit the pitch.
  std::vector<std::int64_t> widths_of(bool channels_inner, int pitch, bool fold, std::int64_t groups) const {
    const Axis& w = problem.axes[2];
    const std::int64_t wider =
        round_up(groups * std::max(problem.group_in_channels(), problem.group_out_channels()), 4);
    // A thread's pixels along W are a pitch apart.
    if (fold && pitch) {
      if (channels_inner && pitch % wider) return {};
      return {(channels_inner ? pitch / wider : pitch) * R};
    }
    const std::int64_t columns = !pitch ? 64 : channels_inner ? pitch / wider : pitch;
    std::vector<std::int64_t> widths;
    for (std::int64_t width = 1; width <= columns && (width == 1 || width / 2 < w.input); width *= 2) {
      widths.push_back(fold ? width * R : width);
    }
    const std::int64_t most = columns - ceil_div(w.dilation * (w.filter - 1), w.stride);
    if (pitch && most >= 1) widths.push_back(std::min(most, w.input));
    std::sort(widths.begin(), widths.end());
    widths.erase(std::unique(widths.begin(), widths.end()), widths.end());
    return widths;
  }

  void consider_tiles(bool channels_inner, int pitch, bool fold) {
    const Axis &d = problem.axes[0], &h = problem.axes[1];
    const RowTaps rows = row_taps(h, fold);
    const bool several = rows.consecutive && rows.count > 1;
    const std::int64_t row_unit = fold ? 1 : R;
    for (std::int64_t beside = 1; beside <= 64; beside *= 2) {
      if (beside > 1 && beside / 2 >= problem.groups) break;
      const std::int64_t groups = std::min(beside, problem.groups);
      for (const std::int64_t width : widths_of(channels_inner, pitch, fold, groups)) {
        for (std::int64_t height = row_unit; height <= 4 * row_unit; height *= 2) {
          if (height > row_unit && height / 2 >= h.input) break;
          for (std::int64_t depth = 1; depth <= 4; depth *= 2) {
            if (depth > 1 && depth / 2 >= d.input) break;
            if (groups > 1 && depth * height * width * groups > 16384) break;
            Choice choice{channels_inner, pitch, fold, {depth, height, width}, groups, 0, 256, false};
            if (!weights) {
              // Fewer threads find fewer tiles and tables, and sum more pixels each.
              for (choice.threads = 128; choice.threads <= 256; choice.threads *= 2) consider(choice);
              continue;
            }
            for (int taps = 0; taps < int(std::size(kDepthwiseTapSets)); ++taps) {
              if ((kDepthwiseTapSets[taps].rows > 1) != several) continue;
              choice.taps = taps;
              for (const bool all_jobs : {false, true}) {
                choice.all_jobs = all_jobs;
                consider(choice);
              }
            }
          }
        }
      }
    }
  }

  void consider_all() {
    const bool channels = request.output[1] == 1 || request.input[1] == 1;
    const bool columns = request.output[4] == 1 || request.input[4] == 1 || !channels;
    for (const bool fold : {false, true}) {
      // Large strides make boxes of many short rows.
      for (const int pitch : {kDepthwiseRowsPitch, kDepthwiseAnyPitch}) {
        if (columns) consider_tiles(false, pitch, fold);
      }
      for (const int pitch : {kDepthwiseChannelsPitch, kDepthwiseAnyPitch}) {
        if (channels) consider_tiles(true, pitch, fold);
      }
    }
    for (const bool fold : {false, true}) {
      if (!best.grid && !columns) consider_tiles(false, kDepthwiseAnyPitch, fold);
    }
  }

  // Divisors take their time, and only the best launch needs them.
  void complete() {
    DepthwiseGradientShape& shape = best.shape;
    const Axis& w = problem.axes[2];
    const bool fold = shape.pixel_axis == 2;
    shape.by_slots = FastDivisor(shape.slots);
    shape.by_items = FastDivisor(shape.items);
    shape.by_columns = FastDivisor(fold ? shape.axis[2].tile / R : shape.axis[2].tile);
    shape.by_rows = FastDivisor(fold ? shape.axis[1].tile : shape.axis[1].tile / R);
    for (int a = 0; a < kAxes; ++a)
      shape.by_tiles[a] = FastDivisor(ceil_div(problem.axes[a].input, shape.axis[a].tile));
    shape.by_channel_blocks = FastDivisor(ceil_div(problem.groups, shape.block_groups));
    shape.by_group_in = FastDivisor(shape.group_in);
    shape.by_group_out = FastDivisor(shape.group_out);
    shape.by_taps = FastDivisor(shape.taps);
    shape.by_pair_taps = FastDivisor(std::int64_t(shape.taps) * shape.group_out);
    shape.by_filter_w = FastDivisor(w.filter);
    shape.by_filter_hw = FastDivisor(problem.axes[1].filter * w.filter);
    shape.by_row_period = FastDivisor(shape.row_period);
    shape.by_block_jobs = FastDivisor(shape.block_jobs);
    shape.by_lanes = FastDivisor(shape.lanes);
    shape.by_job_blocks = FastDivisor(ceil_div(shape.jobs, shape.block_jobs));
    shape.by_row_sets = FastDivisor(shape.row_sets);
    shape.by_row_classes = FastDivisor(shape.row_classes);
    shape.by_column_sets = FastDivisor(shape.column_sets);
    shape.by_filter_d = FastDivisor(problem.axes[0].filter);
  }
};

}  // namespace

DepthwiseGradientLaunch plan_depthwise_gradient(const Request& request, const DeviceTraits& device, bool aligned,
                                                std::int64_t bytes) {
  Planner planner{request, device, aligned, double(bytes)};
  planner.consider_all();
  if (!planner.best.grid) return planner.best;
  planner.complete();
  if (request.op == Operator::grad_weight) planner.best.sum = sum_shape(request, planner.best.shape.splits);
  return planner.best;
}

std::string name_of(Operator op, const DepthwiseGradientLaunch& launch) {
  const DepthwiseGradientShape& shape = launch.shape;
  std::string name = (shape.channels_inner ? "channels" : "rows") + std::to_string(shape.slots);
  for (const DepthwiseGradientAxis& axis : shape.axis) name += "x" + std::to_string(axis.tile);
  if (op == Operator::grad_input) return name;
  const DepthwiseTapSet set = kDepthwiseTapSets[launch.taps];
  return name + "t" + std::to_string(set.columns) + "x" + std::to_string(set.rows);
}

}  // namespace convt
