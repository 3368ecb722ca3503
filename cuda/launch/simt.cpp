#include "launch/simt.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace convt {
namespace {

constexpr double kMaxBlocks = 9e18 / 1024;
constexpr std::int64_t kMaxTaps = (1LL << 31) - (1 << 9);   // a digit of a cursor and its step in 32 bits
constexpr double kMaxSplits = 1 << 16;

// Offsets and positions that the kernel keeps in 32 bits.
std::string refusal(Operator op, const Problem& problem) {
  const auto pixels = [](std::int64_t count) { return std::to_string(count) + " pixels"; };
  double rows = double(op == Operator::forward ? problem.group_in_channels() : problem.group_out_channels());
  double positions = double(problem.taps());
  std::int64_t depth = op == Operator::forward ? problem.group_in_channels() : problem.group_out_channels();
  if (op == Operator::grad_weight) {
    depth = problem.batch;
    rows = double(problem.batch);
    positions = double(problem.input_pixels());
  }
  for (const Axis& axis : problem.axes) {
    if (op == Operator::forward) {
      if (axis.input > kSimtMaxInput) return "an input axis of " + pixels(axis.input) + ", over 3 * 2**30";
      if (axis.filter >= kMaxTaps || axis.dilation * (axis.filter - 1) / axis.stride > kSimtMaxShift) {
        return "a filter that reaches over more than 2**29 input pixels";
      }
      if (axis.stride >= kMaxTaps || axis.dilation / axis.stride >= kMaxTaps) return "a stride or dilation over 2**31";
      continue;
    }
    if (axis.output() + axis.padding >= kSimtMaxGathered) {
      return "an output axis of " + pixels(axis.output()) + ", over 2**32 with its padding";
    }
    if (op == Operator::grad_input && axis.filter >= kMaxTaps) return "a filter axis of 2**31 taps or more";
    if (op == Operator::grad_weight && axis.input >= kMaxTaps) {
      return "an input axis of " + pixels(axis.input) + ", not below 2**31";
    }
  }
  if (depth >= kMaxTaps) return "a sum over 2**31 channels or images";
  if (rows * positions >= 4.0 * double(kMaxTaps)) return "a sum of more than 2**33 products per element";
  return {};
}

// Phases of an axis that hold a tap.
std::int64_t nonempty_phases(const Axis& axis) {
  return std::min({axis.filter, tap_solver(axis).period, axis.output()});
}

// What the candidates of a problem have in common.
struct Work {
  double rows = 0;  // of K: of a phase that holds taps, as far as a tile computes them; of all splits together
  double phases = 1, nonempty = 1;
  std::int64_t phase_pixels = 0;  // of the phase with the most
  double scattered = 1;  // sectors of 32 bytes that a store touches, per full one
  double stored = 0;  // bytes of the result
};

double resident_blocks(const Request& request, const DeviceTraits& device, const SimtPlan& plan) {
  const double threads = plan.threads, registers = request.dtype == DType::float64 ? 128 : 80;
  return std::max(
      1.0, std::floor(std::min({2048.0 / threads, double(device.registers_per_multiprocessor) / (registers * threads),
                                double(device.shared_per_multiprocessor) / double(plan.shared_bytes + 1024)})));
}

// A multiprocessor issues 4 warp instructions per clock, 75 % of them in practice; a chunk takes no less than the latency of its
// loads. In the compiled code the loops of all operators are as long: 22 instructions per plain element of a chunk, 42 per
// gathered one (the forward's plans count 17 for either), 32 products and 3 loads (float64: 64 and 6) per row and thread, 14 per
// element of the store. The sum of the splits is a launch that reads the partial sums once, four at a time.
DirectCost predict(const Request& request, const DeviceTraits& device, const SimtPlan& plan, const Work& work) {
  const SimtShape& shape = plan.shape;
  const bool wide = request.dtype == DType::float64;
  const double threads = plan.threads, warps = std::max(1.0, threads / 32), splits = double(shape.splits);
  const double tile_channels = SimtLayout::tile_channels(shape), tile_pixels = SimtLayout::tile_pixels(shape);
  const double slice_rows = 1 << shape.slice_rows_log2, chunk = SimtLayout::chunk_of(shape);
  const double chunks = std::ceil(std::ceil(work.rows / chunk) / splits);
  const double products = slice_rows * (kSimtChannels * kSimtPixels * (wide ? 2 : 1) + (wide ? 6 : 3) + 3);
  const bool forward = request.op == Operator::forward;
  const double loads = chunk * (tile_channels * (forward ? 17 : 22) + tile_pixels * (forward ? 17 : 42));
  const double per_chunk = products + loads / threads + 60;
  const double store = tile_channels * tile_pixels / threads * 14 + 150;
  const double empty_block = (700 + store) * warps, full_block = empty_block + chunks * per_chunk * warps;
  const double resident = resident_blocks(request, device, plan);
  const double blocks = double(plan.grid), full = blocks * work.nonempty / std::max(work.phases, work.nonempty);
  const double clock = device.clock_ghz * 1e3;  // per microsecond
  const double issue = (full * full_block + (blocks - full) * empty_block) / blocks / (4 * 0.75);  // cycles of a block
  const double latency = 3500 + chunks * (600 + per_chunk);
  const auto wave = [&](double together) { return std::max(together * issue, latency); };
  const double per_multiprocessor = blocks / device.multiprocessors;
  const double waves = std::floor(per_multiprocessor / resident);
  const double rest = std::ceil(per_multiprocessor - waves * resident);
  const double compute = (waves * wave(resident) + (rest > 0 ? wave(rest) : 0)) / clock;
  const double bandwidth = device.memory_gbs * 0.9e3;
  const double partial = double(plan.workspace_bytes);
  const double memory =
      (double(plan.bytes_predicted) - partial - work.stored + work.stored * std::max(1.0, work.scattered / 2)) /
      bandwidth;
  const double sum = shape.splits == 1 ? 0 : 3 + std::ceil(splits / 4) * 700 / clock + partial / bandwidth;
  // What was measured on an H200 against this count; float64 has no other kernel.
  const double seen = wide ? 1.0 : request.dtype == DType::float32 ? 2.6 : 3.8;
  return {seen * compute, memory, (wide ? 3 : 12) + sum};
}

// --- what a tile, its pixels and K are, by operator ---

// Innermost axis of more than one position, or none.
int fastest_axis(const Problem& problem, std::int64_t Axis::* extent) {
  for (int a = kAxes - 1; a >= 0; --a) {
    if (problem.axes[a].*extent > 1) return a;
  }
  return -1;
}

// Lanes run over channels where these are innermost.
bool channels_innermost(const Strides& strides, std::int64_t channels, std::int64_t positions) {
  return strides[1] == 1 && channels > 1 && (strides[4] != 1 || positions == 1);
}

// Elements that neighbouring lanes find in a sector of 32 bytes, when `run` of them are `step` apart.
double sector_use(const Request& request, std::int64_t run, std::int64_t step) {
  return std::min(double(run), 32.0 / double(storage_bytes(request.dtype)) / double(step));
}

Work forward_work(const Request& request, SimtShape& shape) {
  const Problem& problem = request.problem;
  Work work;
  double taps = 1;
  double met = 1;  // products that exist, of those that a tile of whole images computes
  std::int64_t positions = 1;
  for (int a = 0; a < kAxes; ++a) {
    const Axis& axis = problem.axes[a];
    SimtAxis& to = shape.axis[a];
    to.taps = tap_solver(axis);
    to.gathered = axis.input;
    to.result = axis.output();
    to.padding = axis.padding;
    to.phases = std::min(axis.stride, axis.output());
    to.shift_step = axis.dilation / to.taps.gcd;
    if (a == kAxes - 1 && axis.stride > 1 && axis.dilation % axis.stride == 1 && axis.filter < to.phases) {
      shape.phase_runs = true;
      to.phases = axis.filter;
    }
    // A run of phases may need one q more.
    positions *= ceil_div(axis.output(), axis.stride) + (a == kAxes - 1 && shape.phase_runs);
    work.phases *= double(to.phases);
    work.nonempty *= double(nonempty_phases(axis));
    // Taps of a phase that meet the image at all: a filter longer than the image meets it partly.
    const double phase_taps = double(axis.filter) / double(nonempty_phases(axis));
    taps *= phase_taps;
    met *= double(axis.input) / (double(axis.input) + phase_taps - 1);
  }
  shape.channels = problem.group_out_channels();
  shape.outer = problem.batch;
  shape.depth = problem.group_in_channels();
  shape.outer_fastest = problem.batch >= 8 && positions <= 64 && met < 0.6;
  shape.gathered_rows_fast = channels_innermost(request.input, shape.depth, positions);
  shape.result_channels_fast = channels_innermost(request.output, shape.channels, positions);
  SimtStrides& to = shape.strides;
  to.plain = {shape.depth * request.filter[0], request.filter[1], request.filter[0], {}};
  to.gathered = {shape.depth * request.input[1], request.input[0], request.input[1], {}};
  to.result = {shape.channels * request.output[1], request.output[1], request.output[0], {}, 0};
  for (int a = 0; a < kAxes; ++a) {
    to.plain.axis[a] = request.filter[2 + a];
    to.gathered.axis[a] = request.input[2 + a];
    to.result.axis[a] = request.output[2 + a];
  }
  to.bias = request.bias_stride;
  work.phase_pixels = problem.batch * positions;
  // Tiles of one pixel of many images skip the taps that miss it.
  work.rows = taps * (shape.outer_fastest ? met : 1) * double(shape.depth);
  const double size = double(storage_bytes(request.dtype));
  // Stores of a phase that is not alone fill sectors partly.
  work.scattered = request.output[1] == 1 ? 1 : std::min(32.0 / size, double(problem.axes[2].stride));
  work.stored = double(problem.batch) * double(problem.out_channels) * double(problem.output_pixels()) * size;
  return work;
}

Work grad_input_work(const Request& request, SimtShape& shape) {
  const Problem& problem = request.problem;
  const Axis& w = problem.axes[kAxes - 1];
  shape.channels = problem.group_in_channels();
  shape.outer = problem.batch;
  shape.depth = problem.group_out_channels();
  SimtStrides& to = shape.strides;
  to.plain = {shape.channels * request.filter[0], request.filter[0], request.filter[1], {}};
  to.gathered = {shape.depth * request.output[1], request.output[0], request.output[1], {}};
  to.result = {shape.channels * request.input[1], request.input[1], request.input[0], {}, 0};
  for (int a = 0; a < kAxes; ++a) {
    const Axis& axis = problem.axes[a];
    SimtAxis& at = shape.axis[a];
    at.rows = axis.filter;
    at.gathered = axis.output();
    at.result = axis.input;
    at.shift_step = -axis.dilation;
    at.q_first = -axis.padding;
    at.q_step = axis.stride;
    at.phases = 1;
    to.plain.axis[a] = request.filter[2 + a];
    to.gathered.axis[a] = request.output[2 + a];
    to.result.axis[a] = request.input[2 + a];
  }
  shape.depth_fastest = channels_innermost(request.output, shape.depth, problem.output_pixels());
  shape.gathered_rows_fast =
      shape.depth_fastest || sector_use(request, w.filter, w.dilation) > sector_use(request, w.input, w.stride);
  // Of channels and rows, lanes run over those that lie closer together.
  const int tap_axis = fastest_axis(problem, &Axis::filter);
  const std::int64_t between_rows = request.filter[shape.depth_fastest || tap_axis < 0 ? 1 : 2 + tap_axis];
  shape.plain_rows_fast = between_rows < request.filter[0];
  shape.result_channels_fast = channels_innermost(request.input, shape.channels, problem.input_pixels());
  Work work;
  work.phase_pixels = problem.batch * problem.input_pixels();
  work.rows = double(shape.depth) * double(problem.taps());
  return work;
}

Work grad_weight_work(const Request& request, SimtShape& shape) {
  const Problem& problem = request.problem;
  const Axis& w = problem.axes[kAxes - 1];
  shape.channels = problem.group_in_channels();
  shape.outer = problem.group_out_channels();
  shape.depth = problem.batch;
  SimtStrides& to = shape.strides;
  to.plain = {shape.channels * request.input[1], request.input[1], request.input[0], {}};
  to.gathered = {shape.outer * request.output[1], request.output[1], request.output[0], {}};
  for (int a = 0; a < kAxes; ++a) {
    const Axis& axis = problem.axes[a];
    SimtAxis& at = shape.axis[a];
    at.rows = axis.input;
    at.gathered = axis.output();
    at.result = axis.filter;
    at.shift_step = -axis.stride;
    at.q_first = -axis.padding;
    at.q_step = axis.dilation;
    at.phases = 1;
    to.plain.axis[a] = request.input[2 + a];
    to.gathered.axis[a] = request.output[2 + a];
  }
  shape.outer_fastest = channels_innermost(request.output, shape.outer, problem.output_pixels());
  shape.gathered_rows_fast =
      !shape.outer_fastest && sector_use(request, w.input, w.stride) >= sector_use(request, w.filter, w.dilation);
  const int pixel_axis = fastest_axis(problem, &Axis::input);
  shape.plain_rows_fast = request.input[pixel_axis < 0 ? 0 : 2 + pixel_axis] < request.input[1];
  Work work;
  work.phase_pixels = shape.outer * problem.taps();
  work.rows = double(problem.batch) * double(problem.input_pixels());
  return work;
}

// Where the weight gradient's tiles go: into its tensor, or into the partial sums [split][tap][in_channel][out_channel].
void set_splits(const Request& request, std::int64_t splits, SimtPlan& plan) {
  const Problem& problem = request.problem;
  SimtShape& shape = plan.shape;
  shape.splits = splits;
  SimtStrides::Result& to = shape.strides.result;
  if (splits == 1) {
    to = {shape.channels * request.filter[0],
          request.filter[0],
          request.filter[1],
          {request.filter[2], request.filter[3], request.filter[4]},
          0};
  } else {
    const std::int64_t tap = problem.in_channels * shape.outer, row = tap * problem.axes[2].filter;
    to = {shape.channels * shape.outer, shape.outer, 1, {row * problem.axes[1].filter, row, tap}, tap * problem.taps()};
    plan.sum = sum_shape(request, splits);
    plan.workspace_bytes = partial_bytes(request, splits);
    plan.bytes_predicted += 2 * plan.workspace_bytes;
  }
  const int tap_axis = fastest_axis(problem, &Axis::filter);
  shape.result_channels_fast = to.channel < (shape.outer_fastest || tap_axis < 0 ? to.outer : to.axis[tap_axis]);
}

// One thread block per tile, powers of two, and what fills the GPU once or twice.
std::vector<std::int64_t> split_counts(const Request& request, const DeviceTraits& device, const SimtPlan& plan,
                                       const Work& work, double blocks) {
  std::vector<std::int64_t> counts = {1};
  if (request.op != Operator::grad_weight) return counts;
  const double together = resident_blocks(request, device, plan) * device.multiprocessors;
  const double most =
      std::min({std::ceil(work.rows / SimtLayout::chunk_of(plan.shape)), 4 * together / blocks, kMaxSplits});
  for (std::int64_t count = 2; double(count) <= most; count *= 2) counts.push_back(count);
  for (double filled : {together, 2 * together}) {
    const double count = std::floor(filled / blocks);
    if (count > 1 && count <= most) counts.push_back(std::int64_t(count));
  }
  return counts;
}

}  // namespace

std::variant<SimtPlan, std::string> plan_simt(const Request& request, const DeviceTraits& device) {
  const Problem& problem = request.problem;
  if (std::string reason = refusal(request.op, problem); !reason.empty()) return reason;
  SimtPlan base;
  base.op = request.op;
  base.dtype = request.dtype;
  SimtShape& shape = base.shape;
  shape.groups = problem.groups;
  shape.splits = 1;
  const Work work = request.op == Operator::forward      ? forward_work(request, shape)
                    : request.op == Operator::grad_input ? grad_input_work(request, shape)
                                                         : grad_weight_work(request, shape);
  base.bytes_predicted =
      storage_bytes(request.dtype) *
      (problem.batch * (problem.in_channels * problem.input_pixels() + problem.out_channels * problem.output_pixels()) +
       problem.in_channels * problem.group_out_channels() * problem.taps());

  SimtPlan best;
  const std::int64_t accumulator = accumulator_bytes(request.dtype), vector = 16 / accumulator;
  for (int channels_log2 = 0; channels_log2 <= 5; ++channels_log2) {
    for (int pixels_log2 = 0; pixels_log2 <= 5; ++pixels_log2) {
      for (int slices_log2 = 0; slices_log2 <= 5; ++slices_log2) {
        const int log2 = channels_log2 + pixels_log2 + slices_log2;
        if (log2 < 5 || log2 > 8) continue;
        for (int slice_rows_log2 = 2; slice_rows_log2 <= 3; ++slice_rows_log2) {
          const std::int64_t chunk = 1LL << (slice_rows_log2 + slices_log2);
          SimtPlan tiled = base;
          tiled.threads = 1 << log2;
          const std::int64_t tile_channels = kSimtChannels << channels_log2, tile_pixels = kSimtPixels << pixels_log2;
          tiled.shape.channels_log2 = channels_log2;
          tiled.shape.pixels_log2 = pixels_log2;
          tiled.shape.slices_log2 = slices_log2;
          tiled.shape.slice_rows_log2 = slice_rows_log2;
          tiled.shape.channel_tiles = ceil_div(shape.channels, tile_channels);
          tiled.shape.pixel_tiles = ceil_div(work.phase_pixels, tile_pixels);
          const double blocks = work.phases * double(tiled.shape.channel_tiles) * double(tiled.shape.pixel_tiles) *
                                double(problem.groups);
          tiled.shape.header_bytes =
              std::int32_t(SimtLayout::kBlockBytes + (3 * chunk + tile_pixels) * std::int64_t(sizeof(SimtRow)));
          tiled.shape.stage_bytes = std::int32_t(chunk * (tile_channels + tile_pixels + 2 * vector) * accumulator);
          tiled.shared_bytes =
              tiled.shape.header_bytes +
              std::max<std::int64_t>(2 * tiled.shape.stage_bytes, tile_channels * (tile_pixels + vector) * accumulator);
          if (tiled.shared_bytes > device.shared_per_block) continue;
          for (std::int64_t splits : split_counts(request, device, tiled, work, blocks)) {
            if (blocks * double(splits) > std::min(kMaxBlocks, 65535.0 * 2147483647.0)) continue;
            SimtPlan plan = tiled;
            if (request.op == Operator::grad_weight) set_splits(request, splits, plan);
            plan.grid = std::int64_t(blocks) * splits;
            plan.cost = predict(request, device, plan, work);
            if (best.grid && plan.cost.total() >= best.cost.total()) continue;
            plan.config = std::to_string(tile_channels) + "x" + std::to_string(tile_pixels) + "x" +
                          std::to_string(1 << slices_log2) + (splits > 1 ? "x" + std::to_string(splits) : "");
            best = plan;
          }
        }
      }
    }
  }
  if (!best.grid) return "more thread blocks than a launch can have";
  return best;
}

SimtOperands simt_operands(const SimtPlan& plan, const Pointers& pointers) {
  switch (plan.op) {
    case Operator::forward:
      break;
    case Operator::grad_input:
      return {pointers.filter, pointers.output, nullptr, pointers.input};
    case Operator::grad_weight:
      return {pointers.input, pointers.output, nullptr, plan.shape.splits == 1 ? pointers.filter : pointers.workspace};
  }
  return {pointers.filter, pointers.input, pointers.bias, pointers.output};
}

}  // namespace convt
