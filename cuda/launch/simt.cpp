#include "launch/simt.hpp"

#include <algorithm>
#include <cmath>

namespace convt {
namespace {

constexpr double kMaxBlocks = 9e18 / 1024;
constexpr std::int64_t kMaxTaps = 1LL << 31;

std::string refusal(const Problem& problem) {
  for (const Axis& axis : problem.axes) {
    if (axis.input > kSimtMaxInput) return "an input axis of " + std::to_string(axis.input) + " pixels, over 3 * 2**30";
    if (axis.filter >= kMaxTaps || axis.dilation * (axis.filter - 1) / axis.stride > kSimtMaxShift) {
      return "a filter that reaches over more than 2**29 input pixels";
    }
    if (axis.stride >= kMaxTaps || axis.dilation / axis.stride >= kMaxTaps) return "a stride or dilation over 2**31";
  }
  if (double(problem.group_in_channels()) * double(problem.taps()) >= 4.0 * double(kMaxTaps)) {
    return "a sum of more than 2**33 products per output";
  }
  return {};
}

// Phases of an axis that hold a tap.
std::int64_t nonempty_phases(const Axis& axis) {
  return std::min({axis.filter, tap_solver(axis).period, axis.output()});
}

// A multiprocessor issues 4 warp instructions per clock, 75 % of them in practice; a chunk takes no less
// than the latency of its loads.
DirectCost predict(const Request& request, const DeviceTraits& device, const SimtPlan& plan, double met) {
  const SimtShape& shape = plan.shape;
  const Problem& problem = request.problem;
  const bool wide = request.dtype == DType::float64;
  const double threads = plan.threads, warps = std::max(1.0, threads / 32);
  const double tile_channels = kSimtChannels << shape.channels_log2, tile_pixels = kSimtPixels << shape.pixels_log2;
  const double slice_rows = 1 << shape.slice_rows_log2, chunk = 1 << (shape.slice_rows_log2 + shape.slices_log2);
  double nonempty = 1, phases = 1, taps = 1;
  for (int a = 0; a < kAxes; ++a) {
    nonempty *= double(nonempty_phases(problem.axes[a]));
    phases *= double(shape.axis[a].phases);
    // Taps of a phase that meet the image at all: a filter longer than the image meets it partly.
    taps *= double(problem.axes[a].filter) / double(nonempty_phases(problem.axes[a]));
  }
  // Tiles of one pixel of many images skip the taps that miss it.
  if (shape.batch_fastest) taps *= met;
  const double chunks = std::ceil(taps * double(problem.group_in_channels()) / chunk);
  const double products = slice_rows * (kSimtChannels * kSimtPixels * (wide ? 2 : 1) + (wide ? 6 : 3) + 3);
  const double per_chunk = products + chunk * (tile_channels + tile_pixels) / threads * 17 + 60;
  const double store = tile_channels * tile_pixels / threads * 14 + 150;
  const double empty_block = (700 + store) * warps, full_block = empty_block + chunks * per_chunk * warps;
  const double resident = std::max(
      1.0, std::floor(
               std::min({2048.0 / threads, double(device.registers_per_multiprocessor) / ((wide ? 128 : 80) * threads),
                         double(device.shared_per_multiprocessor) / double(plan.shared_bytes + 1024)})));
  const double blocks = double(plan.grid), full = blocks * nonempty / std::max(phases, nonempty);
  const double clock = device.clock_ghz * 1e3;                         // per microsecond
  const double issue = (full * full_block + (blocks - full) * empty_block) / blocks / (4 * 0.75);  // cycles of a block
  const double latency = 3500 + chunks * (600 + per_chunk);
  const auto wave = [&](double together) { return std::max(together * issue, latency); };
  const double per_multiprocessor = blocks / device.multiprocessors;
  const double waves = std::floor(per_multiprocessor / resident);
  const double rest = std::ceil(per_multiprocessor - waves * resident);
  const double compute = (waves * wave(resident) + (rest > 0 ? wave(rest) : 0)) / clock;
  // Stores of a phase that is not alone fill sectors of 32 bytes partly.
  const double size = double(storage_bytes(request.dtype));
  const double scattered = request.output[1] == 1 ? 1 : std::min(32.0 / size, double(problem.axes[2].stride));
  const double stores = double(problem.batch) * double(problem.out_channels) * double(problem.output_pixels()) * size;
  const double memory =
      (double(plan.bytes_predicted) - stores + stores * std::max(1.0, scattered / 2)) / (device.memory_gbs * 0.9e3);
  return {compute, memory, 3};
}

}  // namespace

std::variant<SimtPlan, std::string> plan_simt(const Request& request, const DeviceTraits& device) {
  const Problem& problem = request.problem;
  if (request.op != Operator::forward) return std::string("only the forward");
  if (std::string reason = refusal(problem); !reason.empty()) return reason;
  SimtPlan base;
  base.dtype = request.dtype;
  SimtShape& shape = base.shape;
  double phases = 1, pixels = double(problem.batch);
  std::int64_t phase_pixels = problem.batch, spatial = 1;
  double met = 1;  // products that exist, of those that a tile of whole images computes
  for (int a = 0; a < kAxes; ++a) {
    const Axis& axis = problem.axes[a];
    SimtAxis& to = shape.axis[a];
    to = {tap_solver(axis), axis.input, axis.output(), axis.padding, 0, std::min(axis.stride, axis.output())};
    to.shift_step = axis.dilation / to.taps.gcd;
    if (a == kAxes - 1 && axis.stride > 1 && axis.dilation % axis.stride == 1 && axis.filter < to.phases) {
      shape.phase_runs = true;
      to.phases = axis.filter;
    }
    // A run of phases may need one q more.
    const std::int64_t extent = ceil_div(axis.output(), axis.stride) + (a == kAxes - 1 && shape.phase_runs);
    phases *= double(to.phases);
    pixels *= double(extent);
    phase_pixels *= extent;
    spatial *= extent;
    const double taps = double(axis.filter) / double(nonempty_phases(axis));
    met *= double(axis.input) / (double(axis.input) + taps - 1);
  }
  for (int i = 0; i < 2 + kAxes; ++i) {
    shape.strides.input[i] = request.input[i];
    shape.strides.filter[i] = request.filter[i];
    shape.strides.output[i] = request.output[i];
  }
  shape.strides.bias = request.bias_stride;
  shape.batch = problem.batch;
  shape.groups = problem.groups;
  shape.group_in = problem.group_in_channels();
  shape.group_out = problem.group_out_channels();
  shape.batch_fastest = problem.batch >= 8 && spatial <= 64 && met < 0.6;
  shape.input_channels_fast = request.input[1] == 1 && shape.group_in > 1 && (request.input[4] != 1 || spatial == 1);
  shape.output_channels_fast =
      request.output[1] == 1 && shape.group_out > 1 && (request.output[4] != 1 || spatial == 1);
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
          SimtPlan plan = base;
          plan.threads = 1 << log2;
          const std::int64_t tile_channels = kSimtChannels << channels_log2, tile_pixels = kSimtPixels << pixels_log2;
          plan.shape.channels_log2 = channels_log2;
          plan.shape.pixels_log2 = pixels_log2;
          plan.shape.slices_log2 = slices_log2;
          plan.shape.slice_rows_log2 = slice_rows_log2;
          plan.shape.channel_tiles = ceil_div(shape.group_out, tile_channels);
          plan.shape.pixel_tiles = ceil_div(phase_pixels, tile_pixels);
          const double blocks =
              phases * double(plan.shape.channel_tiles) * double(plan.shape.pixel_tiles) * double(problem.groups);
          if (blocks > kMaxBlocks || blocks > 65535.0 * 2147483647.0) continue;
          plan.grid = std::int64_t(blocks);
          plan.shape.header_bytes =
              std::int32_t(SimtSetup::kBlockBytes + (3 * chunk + tile_pixels) * std::int64_t(sizeof(SimtRow)));
          plan.shape.stage_bytes = std::int32_t(chunk * (tile_channels + tile_pixels + 2 * vector) * accumulator);
          plan.shared_bytes =
              plan.shape.header_bytes +
              std::max<std::int64_t>(2 * plan.shape.stage_bytes, tile_channels * (tile_pixels + vector) * accumulator);
          if (plan.shared_bytes > device.shared_per_block) continue;
          plan.cost = predict(request, device, plan, met);
          if (best.grid && plan.cost.total() >= best.cost.total()) continue;
          plan.config = std::to_string(tile_channels) + "x" + std::to_string(tile_pixels) + "x" +
                        std::to_string(1 << slices_log2);
          best = plan;
        }
      }
    }
  }
  if (!best.grid) return "more thread blocks than a launch can have";
  return best;
}

}  // namespace convt
