#include "launch/weight_plan.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "launch/gemm_cost.hpp"
#include "launch/gemm_tables.hpp"

namespace convt {

std::string name_of(const WeightConfig& config) {
  return "gw" + std::to_string(config.rows) + "x" + std::to_string(config.columns) + "w" +
         std::to_string(config.warps_m) + "x" + std::to_string(config.warps_n);
}

const std::vector<WeightConfig>& weight_configs() {
  static const std::vector<WeightConfig> configs = {
#define CONVT_WEIGHT_CONFIG(...) WeightConfig{__VA_ARGS__},
#include "config/weight_configs.def"
#undef CONVT_WEIGHT_CONFIG
  };
  return configs;
}

namespace {

constexpr std::int64_t kUnlimited = std::numeric_limits<std::int32_t>::max();

struct Work {
  const Request& request;
  const GemmShape& shape;         // of grad_input: patches are the same
  const DeviceTraits& device;
  const WeightConfig& config;
  Operand operand;
  int blocks;                     // that a multiprocessor holds

  double weights() const {
    return double(shape.problem.taps() * shape.problem.in_channels * shape.problem.group_out_channels());
  }
  // Blocks of rows, channels and taps.
  double tiles(std::int64_t octets_of_block, std::int64_t tap_blocks) const {
    return double(shape.problem.groups * row_blocks() * ceil_div(octets(), octets_of_block)) * double(tap_blocks);
  }
  std::int64_t octets() const { return ceil_div(shape.in_channels, kOctet); }
  std::int64_t row_blocks() const { return ceil_div(shape.out_channels, config.rows); }
  std::int64_t planes(std::int64_t octets) const { return octets * kOctet / operand_vector(operand); }
};

double boxes_of(const Positions& q, const TileBox& box) {
  double boxes = 1;
  for (int axis = 0; axis < kTileAxes; ++axis) boxes *= double(ceil_div(q[axis], box.tile[axis]));
  return boxes;
}

struct Candidate {
  std::int32_t octets = 0;
  std::int64_t taps = 0;          // of a block, at most
  std::int64_t splits = 1;
  TileBox box{};
  GemmCost cost{};
};

std::int64_t shared_of(const Work& work, std::int64_t octets, std::int64_t pixels) {
  return weight_shared(work.config, work.operand, std::int32_t(pixels), std::int32_t(work.planes(octets)),
                       work.shape.axes[2].step > 1)
      .bytes;
}

// docs/kernels.md explains every term. Cycles are a multiprocessor's, for one box of one thread block.
GemmCost cost_of(const Work& work, const Candidate& choice, const PatchTotals& patches, const Positions& q) {
  const WeightConfig& config = work.config;
  const Problem& problem = work.shape.problem;
  const bool ieee = work.operand == Operand::ieee, wide = is_float32(work.operand);
  const double bytes = operand_bytes(work.operand), vector = operand_vector(work.operand);
  const double warps = config.warps(), depth = wide ? 8 : 16, steps = config.pixels / depth;
  const double pixels = double(patches.most_pixels), row_pixels = double(patches.most_row_pixels);
  const double row_tiles = config.warp_rows() / double(kMmaRows), column_tiles = config.warp_columns() / double(kOctet);
  const double mma = warps * row_tiles * column_tiles * steps;
  const double mma_cycles = work.device.capability >= 90 ? 6.3 : 8.0;   // of a quarter multiprocessor, one mma.sync
  const double fragments = warps * steps * (4 * row_tiles + 2 * column_tiles);
  const double channels = config.rows + choice.octets * kOctet;
  const double elements = config.rows * double(config.pixels) + choice.octets * double(kOctet) * pixels;
  const bool gathers = !work.shape.gathers_along_channels();
  const double loads = elements / 32 / (gathers ? 1 : vector);      // warp instructions
  const double shared = fragments + elements * bytes / 128 + loads * (gathers ? 1 + 32 / row_pixels : 8);
  const double batches = elements / kOctet / 32;
  const double issue = fragments * (wide ? 1.6 : 0.35) + mma * (ieee ? 8 : 1) + loads * (gathers ? 2.5 : 2) +
                       batches * 45 + (config.pixels + pixels) / 32 * 60 + warps * 120;
  const double l2 = elements * bytes * (gathers ? 1 + 24 / (row_pixels * bytes) : 1) +
                    (config.pixels / double(choice.box.tile[3])) * channels * (gathers ? 16 : 0);

  const double boxes = boxes_of(q, choice.box), tiles = work.tiles(choice.octets, patches.groups);
  const double each = std::ceil(boxes / double(choice.splits));       // boxes of a thread block
  const double resident =
      std::max(1.0, std::min(std::floor(double(work.device.shared_per_multiprocessor) /
                                        double(shared_of(work, choice.octets, std::int64_t(pixels)) + 1024)),
                             double(work.blocks)));
  const double per_sm = std::ceil(tiles * double(choice.splits) / work.device.multiprocessors);
  const double cycle = 1e-3 / work.device.clock_ghz;
  GemmCost cost;
  const double all = per_sm * each * cycle;
  cost.tensor = mma * (ieee ? 3 : 1) * mma_cycles / 4 * all;
  cost.shared = shared * all;
  cost.issue = issue / 4 * all;
  cost.l2 = l2 / 40 * all;
  const double partial = choice.splits > 1 ? 8 * work.weights() * double(choice.splits) : 0;   // written and read
  cost.bytes = l2 * boxes * tiles + partial;
  cost.memory = tensor_bytes(problem, bytes) / work.device.memory_gbs * 1e-3;
  // A box takes no less than its barrier and the latency of what is fetched behind it.
  const double latency = per_sm / std::min(resident, per_sm) * (3000 + each * 400) * cycle;
  // Partial sums stay in L2 mostly; their sum is a launch of its own.
  const double second = choice.splits > 1 ? 2.5 + partial / 4.0e6 + double(choice.splits) * 0.01 : 0;
  // What the terms leave out, as measured: mma.sync waits for the fragments of one box after the other.
  cost.total = overlapped(cost) * (wide ? 2.3 : 3.0) + latency + second + 3.0;
  return cost;
}

std::vector<std::int64_t> splits_of(const Work& work, double tiles, double boxes) {
  const double most = std::min(boxes, std::max(1.0, kMaxPartialBytes / (4 * work.weights())));
  std::vector<std::int64_t> made = {1};
  for (const double fill : {0.5, 1.0, 2.0, 3.0, 4.0}) {
    const double splits = std::floor(fill * work.device.multiprocessors * work.blocks / tiles);
    made.push_back(std::int64_t(std::clamp(splits, 1.0, most)));
    made.push_back(std::int64_t(std::clamp(std::floor(fill * work.device.multiprocessors / tiles), 1.0, most)));
  }
  std::sort(made.begin(), made.end());
  made.erase(std::unique(made.begin(), made.end()), made.end());
  return made;
}

// Shifts of grad_input, one of every tap; in spans of at most `taps`.
BlockShifts shifts_of(const GemmShape& shape) { return std::move(block_shifts(shape, {}, kMmaRows, 1)[0]); }
std::vector<PatchSpan> tap_blocks(const GemmShape& shape, const BlockShifts& every, std::int64_t taps) {
  return spans_of(every.shifts, std::int32_t(shape.problem.axes[2].stride), taps);
}

// Taps per block: those that the columns hold, evenly.
std::optional<Candidate> best_of(const Work& work, const PatchLimits& limits) {
  Positions q = {work.shape.problem.batch};
  for (int axis = 0; axis < kAxes; ++axis) q[1 + axis] = work.shape.axes[axis].output;
  const std::vector<TileBox> candidates = boxes(work.config.pixels, q);
  const BlockShifts every = shifts_of(work.shape);
  std::optional<Candidate> best;
  std::int64_t previous = 0;
  for (std::int64_t most = work.config.column_tiles(); most >= 1; most = most > 4 ? most * 3 / 4 : most - 1) {
    const std::int64_t octets = ceil_div(work.octets(), ceil_div(work.octets(), most));
    if (octets == previous) continue;
    previous = octets;
    Candidate choice{std::int32_t(octets), work.config.column_tiles() / octets};
    BlockShifts block = every;
    block.spans = tap_blocks(work.shape, every, choice.taps);
    for (const TileBox& box : candidates) {
      const auto patches = patch_totals(work.shape, block, box, limits);
      if (!patches || shared_of(work, octets, patches->most_pixels) > shared_capacity(work.device, work.blocks)) {
        continue;
      }
      choice.box = box;
      for (const std::int64_t splits : splits_of(work, work.tiles(octets, patches->groups), boxes_of(q, box))) {
        choice.splits = splits;
        choice.cost = cost_of(work, choice, *patches, q);
        if (!best || choice.cost.total < best->cost.total) best = choice;
      }
    }
  }
  return best;
}

std::variant<WeightPlan, std::string> build(const Work& work, const Candidate& choice, const PatchLimits& limits) {
  const Request& request = work.request;
  const Problem& problem = request.problem;
  WeightPlan plan;
  plan.config = work.config;
  plan.operand = work.operand;
  plan.dtype = request.dtype;
  plan.cost = choice.cost;
  WeightParams& params = plan.params;
  std::copy(request.output.begin(), request.output.end(), params.patch.input_strides);
  std::copy(request.input.begin(), request.input.end(), params.input_strides);
  double positions = 1;
  std::int64_t reach = 0;
  for (int axis = 0; axis < kTileAxes; ++axis) {
    TileAxis& to = params.patch.axes[axis];
    to.input = to.output = to.q_count = problem.batch;
    to.stride = to.step = 1;
    if (axis > 0) {
      const GemmShape::Along& along = work.shape.axes[axis - 1];
      to.input = along.input;
      to.output = to.q_count = along.output;
      to.step = std::int32_t(along.step);
    }
    to.tile = choice.box.tile[axis];
    to.tiles = std::int32_t(ceil_div(to.q_count, to.tile));
    to.by_tile = FastDivisor(to.tile);
    to.by_tiles = FastDivisor(to.tiles);
    positions *= to.tiles;
    reach += (to.tile - 1) * request.input[axis == 0 ? 0 : 1 + axis];
  }
  if (positions > kUnlimited) return "more than 2**31 boxes of pixels";

  const bool split = choice.splits > 1;
  const std::int64_t in_channels = problem.group_in_channels(), out_channels = problem.group_out_channels();
  BlockShifts every = shifts_of(work.shape);
  every.spans = tap_blocks(work.shape, every, choice.taps);
  std::vector<WeightBlock> blocks;
  std::vector<WeightTap> taps;
  std::vector<std::int32_t> rows;
  bool interleaved = false;
  for (const PatchGroup& made : group_shifts(work.shape, every, choice.box, limits)) {
    ShiftGroup group = made.group;
    group.row = add_row(rows, made);
    interleaved = interleaved || made.w_phases.size() > 1;
    for (int at = 0; at < group.shifts; ++at) {
      const ShiftRecord& record = every.shifts[group.first_shift + at];
      WeightTap tap{0, record.pixel_offset, 0};
      std::int64_t phase = record.phase, flat = 0, pitch = 1;
      for (int axis = kAxes - 1; axis >= 0; --axis) {
        const Axis& along = problem.axes[axis];
        const std::int64_t k = (phase % along.stride - along.stride * record.shift[axis]) / along.dilation;
        phase /= along.stride;
        tap.result += k * request.filter[2 + axis];
        flat += k * pitch;
        pitch *= along.filter;
      }
      if (split) tap.result = flat * problem.in_channels * out_channels;
      taps.push_back(tap);
    }
    params.pixels = std::max(params.pixels, group.pixels);
    std::int64_t span = 0;
    for (int axis = 0; axis < kTileAxes; ++axis) {
      const std::int64_t pixels = std::int64_t(group.extent[axis]) * params.patch.axes[axis].step;
      span += pixels * request.output[axis == 0 ? 0 : axis + 1];
      reach = std::max(reach, pixels);
    }
    reach = std::max(reach, span);
    WeightBlock block{{}, group};
    for (int axis = 0; axis < kAxes; ++axis) {
      const std::int32_t step = params.patch.axes[1 + axis].step;
      block.bounds.low[axis] = group.offset[axis] - step * group.high[axis];
      block.bounds.high[axis] = block.bounds.low[axis] + step * (group.extent[1 + axis] - 1);
    }
    block.bounds.high[2] += made.w_phases.back();
    blocks.push_back(block);
  }
  if (reach > kUnlimited) return "a patch spans more than 2**31 elements";
  for (WeightBlock& block : blocks) block.group.pixels = params.pixels;
  params.table.taps = append_table(plan.tables, taps);
  const std::int32_t first_row = append_table(plan.tables, rows);
  // Not 0, which says that there is one phase.
  for (auto& [bounds, group] : blocks) group.row = group.row == 0 ? 0 : first_row + group.row - 1;
  params.table.blocks = append_table(plan.tables, blocks);
  plan.tables.resize(round_up(std::int64_t(plan.tables.size()), 16));
  params.table.bytes = std::int32_t(plan.tables.size());

  params.in_channels = std::int32_t(in_channels);
  params.out_channels = std::int32_t(out_channels);
  params.conv_groups = std::int32_t(problem.groups);
  params.block_octets = choice.octets;
  params.row_blocks = std::int32_t(work.row_blocks());
  params.channel_blocks = std::int32_t(ceil_div(work.octets(), choice.octets));
  params.tap_blocks = std::int32_t(blocks.size());
  params.boxes = std::int32_t(positions);
  params.splits = std::int32_t(choice.splits);
  params.shared =
      weight_shared(work.config, work.operand, params.pixels, std::int32_t(work.planes(choice.octets)), interleaved);
  params.partial = split;
  params.row_stride = split ? out_channels : request.filter[0];
  params.column_stride = split ? 1 : request.filter[1];
  params.group_stride = in_channels * params.row_stride;
  params.split_stride = problem.taps() * problem.in_channels * out_channels;
  const int vector = operand_vector(work.operand);
  params.input_vectors = whole_vectors(request.input, in_channels, vector);
  params.patch_vectors = whole_vectors(request.output, out_channels, vector);
  params.by_tap_blocks = FastDivisor(params.tap_blocks);
  params.by_channel_blocks = FastDivisor(params.channel_blocks);
  params.by_row_blocks = FastDivisor(params.row_blocks);
  params.by_conv_groups = FastDivisor(params.conv_groups);
  params.by_octets = FastDivisor(params.block_octets);
  params.by_pixels = FastDivisor(params.pixels);
  for (const WeightBlock& block : blocks) plan.taps = std::max(plan.taps, block.group.shifts);

  const double grid =
      double(params.tap_blocks) * params.channel_blocks * params.row_blocks * params.conv_groups * params.splits;
  if (grid > kUnlimited) return "more than 2**31 thread blocks";
  plan.grid = std::int64_t(grid);
  plan.lay_out(request, choice.splits > 1 ? choice.splits : 0);
  return plan;
}

}  // namespace

std::variant<WeightPlan, std::string> plan_weight(const Request& request, const DeviceTraits& device,
                                                  const WeightConfig& config) {
  if (const std::string reason = gemm_refusal(request); !reason.empty()) return reason;
  const Operand operand = operand_of(request.dtype, request.precision);
  if (!config.has(operand)) return kNoRegisters;
  Request patches = request;
  patches.op = Operator::grad_input;
  const GemmShape shape = gemm_shape(patches);
  for (int blocks = config.blocks_of(operand); blocks > 0; --blocks) {
    const Work work{request, shape, device, config, operand, blocks};
    const PatchLimits limits{kUnlimited, 0};
    if (const auto best = best_of(work, limits)) return build(work, *best, limits);
  }
  // Filters that reach far: patches are cut until they fit.
  for (std::int64_t capacity = 2048; capacity >= config.pixels; capacity /= 2) {
    const Work work{request, shape, device, config, operand, 1};
    const PatchLimits limits{capacity, 0};
    if (const auto best = best_of(work, limits)) return build(work, *best, limits);
  }
  return "needs more shared memory than this GPU gives a thread block";
}

WeightParams bind(const WeightPlan& plan, const Pointers& pointers) {
  WeightParams params = plan.params;
  char* workspace = static_cast<char*>(pointers.workspace);
  params.input = pointers.input;
  params.patch.input = pointers.output;
  params.result = plan.params.partial ? static_cast<void*>(workspace + plan.partial_offset) : pointers.filter;
  params.tables = plan.carried() ? nullptr : workspace;
  // The plan counts on torch's alignment; views may have less.
  if (reinterpret_cast<std::uintptr_t>(pointers.input) % 16 != 0) params.input_vectors = 0;
  if (reinterpret_cast<std::uintptr_t>(pointers.output) % 16 != 0) params.patch_vectors = 0;
  return params;
}

}  // namespace convt
