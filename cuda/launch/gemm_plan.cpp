#include "launch/gemm_plan.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "launch/gemm_tables.hpp"

namespace convt {

const char* GemmCost::bound() const {
  const double terms[] = {tensor, shared, issue, l2, memory};
  const char* names[] = {"tensor", "shared", "issue", "l2", "memory"};
  return names[std::max_element(terms, terms + 5) - terms];
}

std::string name_of(const TileConfig& config) {
  return std::to_string(config.rows) + "x" + std::to_string(config.pixels) + "p" + std::to_string(config.planes) + "w" +
         std::to_string(config.warps_m) + "x" + std::to_string(config.warps_n);
}

std::string GemmPlan::name() const { return name_of(config); }

const std::vector<TileConfig>& gemm_configs() {
  static const std::vector<TileConfig> configs = {
#define CONVT_CONFIG(...) TileConfig{__VA_ARGS__},
#include "config/configs.def"
#undef CONVT_CONFIG
  };
  return configs;
}

Operand operand_of(DType dtype, Precision precision) {
  switch (dtype) {
    case DType::bfloat16:
      return Operand::bfloat16;
    case DType::float16:
      return Operand::float16;
    default:
      return precision == Precision::tf32 ? Operand::tf32 : Operand::ieee;
  }
}

namespace {

constexpr std::int64_t kMaxPartialBytes = 64 << 20;

std::int64_t shared_capacity(const DeviceTraits& device, std::int64_t blocks) {
  constexpr std::int64_t reserved = 1024;   // per block, by the driver
  return std::min(device.shared_per_block, device.shared_per_multiprocessor / blocks - reserved);
}

// Pixels that a patch may have, so that `blocks` thread blocks fit a multiprocessor.
std::int64_t pixel_capacity(const TileConfig& config, Operand operand, const DeviceTraits& device,
                            std::int64_t blocks) {
  const std::int64_t left = shared_capacity(device, blocks) - config.filter_stages * config.slab_bytes(operand);
  return left / (kPatchStages * config.planes * 16 + 4);
}

// Thread blocks that a multiprocessor holds: as many as the configuration was made for, fewer where shared memory is
// small. 0: not even one.
int blocks_that_fit(const TileConfig& config, Operand operand, const DeviceTraits& device) {
  int blocks = config.blocks_of(operand);
  while (blocks > 0 && (config.staging_bytes() > shared_capacity(device, blocks) ||
                        pixel_capacity(config, operand, device, blocks) < config.pixels)) {
    --blocks;
  }
  return blocks;
}

// What a candidate's time depends on.
struct Candidate {
  Origins origin{};
  std::int32_t block_channels = 0;
  std::int32_t splits = 1;
  TileBox box{};
  GemmCost cost;
};

struct Work {
  const Request& request;
  const DeviceTraits& device;
  const TileConfig& config;
  Operand operand;
  int blocks;                     // that a multiprocessor holds
  std::int64_t capacity;          // pixels of a patch

  double mma_steps() const {
    return std::ceil(double(request.problem.group_in_channels()) / (kMmaPlanes * operand_vector(operand)));
  }
  double chunks() const { return std::ceil(mma_steps() * kMmaPlanes / config.planes); }
};

// Pixels that a block's patches have, all groups together; 0 when they do not fit. Most blocks need no cutting.
double patch_pixels(const Work& work, BlockShifts& block, const TileBox& box, double& conflicts) {
  if (block.shifts.empty()) return 1;
  const PatchShape whole = patch_shape(box, block.low, block.high);
  conflicts = std::max(conflicts, whole.conflicts);
  if (whole.pixels <= work.capacity) return double(whole.pixels);
  double pixels = 0;
  for (const ShiftGroup& group : group_shifts(block, box, work.capacity)) pixels += group.pixels;
  return pixels;
}

// Elements that leave straight from registers: where there are no phases, and pairs of positions do not straddle rows.
int direct_elements(const Request& request, const TileBox& box) {
  std::int64_t reach = 0;
  bool even = true;
  for (int axis = 0; axis < kAxes; ++axis) {
    const Axis& along = request.problem.axes[axis];
    if (along.stride != 1) return 0;
    reach += (box.tile[1 + axis] - 1) * request.output[2 + axis];
    even = even && (axis == kAxes - 1 || request.output[2 + axis] % 2 == 0 || along.output() == 1);
  }
  reach += (box.tile[0] - 1) * request.output[0];
  if (request.output[4] != 1 || box.tile[3] % 2 != 0 || reach * 4 > std::numeric_limits<std::int32_t>::max()) return 0;
  return even && request.output[0] % 2 == 0 && request.output[1] % 2 == 0 ? 2 : 1;
}

// What a patch is taken for: itself, or the tile without a halo, which is never more and soon told.
enum class Patches { exact, least };

// docs/kernels.md explains every term. Cycles are a multiprocessor's.
std::optional<GemmCost> cost_of(const Work& work, std::vector<BlockShifts>& blocks, const std::int64_t (&q)[kTileAxes],
                                const TileBox& box, std::int32_t block_channels, std::int32_t splits, Patches patches) {
  const Problem& problem = work.request.problem;
  const DeviceTraits& device = work.device;
  const TileConfig& config = work.config;
  const int vector = operand_vector(work.operand), bytes = operand_bytes(work.operand);
  const std::int64_t out_channels = problem.group_out_channels();
  const double mma_steps = work.mma_steps(), chunks = work.chunks();
  const double vectors = std::ceil(double(problem.group_in_channels()) / vector);
  const double mma_cycles = device.capability >= 90 ? 6.3 : 8.0;   // of a quarter multiprocessor, one mma.sync
  const bool ieee = work.operand == Operand::ieee;
  constexpr double l2_bytes_per_cycle = 40;

  double mma = 0, shared = 0, issue = 0, l2 = 0, steps = 0, aside = 0, conflicts = 1;
  const double filter_loads = config.warp_rows() / kMmaRows * filter_copies(work.operand);
  const double patch_loads = config.warp_pixels() / 16.0;
  const double loads = work.request.input[1] == 1 ? 1 : vector;    // instructions per 16 bytes
  const bool direct = direct_elements(work.request, box) != 0;
  for (BlockShifts& block : blocks) {
    const double pixels =
        patches == Patches::least ? double(box.positions()) : patch_pixels(work, block, box, conflicts);
    if (pixels == 0) return std::nullopt;
    const double units = block.shifts.empty() ? 0 : pixels * vectors;
    const double outputs = double(box.positions()) * block.block.outer_count * block.block.w_count *
                           std::min<std::int64_t>(block_channels, out_channels);
    const double own = double(block.shifts.size());
    mma += double(block.row_tiles) * (config.pixels / kMmaPixels) * mma_steps;
    // A warp's load visits every row of pixels that it covers.
    const double row_pixels = box.tile[3] + (block.shifts.empty() ? 0 : block.high[2] - block.low[2]);
    const double lines = units * loads / 32 * (1 + 32 / row_pixels);
    shared += own * mma_steps * config.warps() * 4 * (filter_loads + patch_loads * conflicts) +
              own * chunks * config.slab_bytes(work.operand) / 128.0 + units / 8 + lines +
              3.0 * config.rows * config.pixels / 32 + outputs / 32;
    // Warp instructions, counted in the compiled code.
    const double batches =
        block.shifts.empty() ? 0 : std::ceil(pixels / config.threads()) * config.planes * vector / 16 * chunks;
    const double rows = outputs / (double(box.tile[3]) * block.block.w_count);
    const bool whole = block.block.w_count == problem.axes[2].stride || work.request.output[1] == 1;
    const double pieces = outputs * bytes / 16 + rows * (work.request.output[1] == 1 ? 0 : 4);
    const double leaving = direct ? config.warps() * (240.0 + config.warp_rows() * config.warp_pixels() / 16)
                                  : pieces / 32 * (whole ? 40 : 120) + config.warps() * 400.0;
    const double own_aside = batches * config.warps() * (60 + (loads > 1 ? 70 : 0)) + leaving + config.warps() * 600.0;
    issue += own * mma_steps * config.warps() * (filter_loads + patch_loads * (ieee ? 9 : 1) + 8) +
             own * chunks * config.warps() * 45 + own_aside;
    aside += own_aside;
    // Rows that start anywhere take a sector more than they fill.
    const double input_row = (box.tile[3] + (block.shifts.empty() ? 0 : block.high[2] - block.low[2])) * bytes;
    const double output_row = double(box.tile[3]) * block.block.w_count * bytes;
    const double input_waste = work.request.input[1] == 1 ? 1 : 1 + 24 / input_row;
    const double output_waste = work.request.output[1] == 1 ? 1 : 1 + 48 / output_row;
    l2 += units * 16 * input_waste + own * chunks * config.slab_bytes(work.operand) + outputs * bytes * output_waste;
    steps += own * chunks;
  }
  issue += mma * (ieee ? 7 : 1);
  double positions = 1;
  for (int axis = 0; axis < kTileAxes; ++axis) positions *= double(ceil_div(q[axis], box.tile[axis]));
  positions *= double(problem.groups * ceil_div(out_channels, block_channels));

  const double cycle = 1e-3 / device.clock_ghz, each = double(blocks.size()) * splits;
  const double per_sm = std::max(1.0, std::ceil(positions * each / device.multiprocessors - 0.15));
  const double share = per_sm / each * cycle;
  const double partial = splits > 1 ? positions * each * config.rows * config.pixels * 4 : 0;
  GemmCost cost;
  // Two warps along rows read every patch fragment twice: 6 % on problem 69, nothing on 64 (H200).
  cost.tensor = mma * (ieee ? 3 : 1) * mma_cycles / 4 * share * (config.warps_m > 1 ? 1.06 : 1);
  cost.shared = shared * share;
  cost.issue = issue / 4 * share;
  cost.l2 = l2 / l2_bytes_per_cycle * share;
  cost.bytes = l2 * positions + 2 * partial;
  cost.memory = (double(problem.batch * problem.out_channels * problem.output_pixels()) * bytes +
                 double(problem.batch * problem.in_channels * problem.input_pixels()) * bytes +
                 double(problem.in_channels * out_channels * problem.taps()) * bytes + 2 * partial) /
                device.memory_gbs * 1e-3;
  // What a thread block waits for alone: first patch and filter, barriers, the way out. Neighbours hide their share of it.
  const double resident = std::min<double>(work.blocks, per_sm);
  const double latency = per_sm * (2500 + steps / each * 90) / resident * cycle;
  // Units overlap, but not perfectly: a 4-norm of what each needs.
  double power = 0;
  for (double term : {cost.tensor, cost.shared, cost.issue, cost.l2, cost.memory}) power += term * term * term * term;
  // Prologue and epilogue do not overlap with their own thread block's products.
  cost.total = std::sqrt(std::sqrt(power)) + aside / 4 * share + latency + 4.0;
  return cost;
}

bool can_split(const Work& work, const std::vector<BlockShifts>& blocks, const std::int64_t (&q)[kTileAxes],
               const TileBox& box, std::int32_t block_channels, std::int32_t splits) {
  const Problem& problem = work.request.problem;
  double tiles = double(blocks.size() * problem.groups * ceil_div(problem.group_out_channels(), block_channels));
  for (int axis = 0; axis < kTileAxes; ++axis) tiles *= double(ceil_div(q[axis], box.tile[axis]));
  const double bytes = tiles * splits * work.config.rows * work.config.pixels * 4;
  return splits <= work.chunks() && bytes <= kMaxPartialBytes &&
         tiles * splits <= 2.0 * work.device.multiprocessors * work.blocks;
}

std::vector<std::int32_t> extents(std::int64_t count, std::int64_t most) {
  std::vector<std::int32_t> made;
  const auto add = [&](std::int64_t extent) {
    if (extent >= 1 && extent <= std::min(count, most)) made.push_back(std::int32_t(extent));
  };
  const std::int64_t fewest = ceil_div(count, most);
  for (std::int64_t tiles = fewest; tiles < fewest + 5; ++tiles) add(ceil_div(count, tiles));
  for (std::int64_t extent = 8; extent <= most; extent *= 2) add(extent);
  add(1);
  std::sort(made.begin(), made.end());
  made.erase(std::unique(made.begin(), made.end()), made.end());
  return made;
}

std::vector<TileBox> boxes(const TileConfig& config, const std::int64_t (&q)[kTileAxes]) {
  std::vector<TileBox> made;
  for (std::int32_t w : extents(q[3], config.pixels)) {
    for (std::int32_t h : extents(q[2], config.pixels / w)) {
      for (std::int32_t d : extents(q[1], config.pixels / (w * h))) {
        const std::int64_t most = config.pixels / (std::int64_t(w) * h * d);
        const std::int64_t n = std::min(q[0], most);
        const TileBox box{{std::int32_t(ceil_div(q[0], ceil_div(q[0], n))), d, h, w}};
        if (box.positions() * 2 >= std::min<std::int64_t>(config.pixels, q[0] * q[1] * q[2] * q[3]))
          made.push_back(box);
      }
    }
  }
  return made;
}

std::vector<Origins> origins_of(const Problem& problem) {
  std::vector<Origins> made = {{Origin::padded, Origin::padded, Origin::padded}};
  for (int axis = 0; axis < kAxes; ++axis) {
    const Axis& along = problem.axes[axis];
    if (along.stride == 1 || along.padding == 0) continue;   // nothing to gain
    const std::size_t count = made.size();
    for (std::size_t at = 0; at < count; ++at) {
      made.push_back(made[at]);
      made.back()[axis] = Origin::aligned;
    }
  }
  return made;
}

// Output channels per row block: equal shares of the channels, as they are and in eights, down to one.
std::vector<std::int32_t> channel_blocks(std::int64_t channels, std::int32_t rows) {
  std::vector<std::int32_t> made;
  for (std::int64_t most = std::min<std::int64_t>(channels, rows); most >= 1;
       most = most > 8 ? most * 3 / 4 : most / 2) {
    const std::int64_t share = ceil_div(channels, ceil_div(channels, most));
    for (std::int64_t block : {share, std::min<std::int64_t>(round_up(share, 8), rows)}) {
      if (std::find(made.begin(), made.end(), block) == made.end()) made.push_back(std::int32_t(block));
    }
  }
  return made;
}

void q_counts(const Problem& problem, const Origins& origin, std::int64_t (&q)[kTileAxes]) {
  q[0] = problem.batch;
  for (int axis = 0; axis < kAxes; ++axis) q[1 + axis] = q_grid(problem.axes[axis], origin[axis]).count;
}

bool stores_along_channels(const Request& request) { return request.output[1] == 1 && request.output[4] != 1; }

bool whole_vectors(const Strides& strides, int channel_axis, int vector) {
  for (int axis = 0; axis < int(strides.size()); ++axis) {
    if (axis != channel_axis && strides[axis] % vector != 0) return false;
  }
  return strides[channel_axis] == 1;
}

std::variant<GemmPlan, std::string> build(const Work& work, const Candidate& choice,
                                          const std::vector<BlockShifts>& blocks) {
  const Request& request = work.request;
  const Problem& problem = request.problem;
  GemmPlan plan;
  plan.config = work.config;
  plan.operand = work.operand;
  plan.origin = choice.origin;
  plan.cost = choice.cost;
  const int vector = operand_vector(work.operand);
  const bool channels_inner = stores_along_channels(request);
  GemmTables tables =
      gemm_tables(blocks, choice.box, work.capacity,
                  {vector, work.config.threads(), choice.block_channels, request.output[1], channels_inner});
  plan.tables = std::move(tables.bytes);

  GemmParams& params = plan.params;
  std::copy(request.input.begin(), request.input.end(), params.input_strides);
  std::copy(request.output.begin(), request.output.end(), params.output_strides);
  params.bias_stride = request.bias_stride;
  std::int64_t tiles = 1, reach = 0;
  for (int axis = 0; axis < kTileAxes; ++axis) {
    TileAxis& to = params.axes[axis];
    to.input = to.output = to.q_count = problem.batch;
    to.stride = 1;
    if (axis > 0) {
      const Axis& from = problem.axes[axis - 1];
      const Origin origin = choice.origin[axis - 1];
      const QGrid grid = q_grid(from, origin);
      to.input = from.input;
      to.output = from.output();
      to.q_begin = grid.begin;
      to.q_count = grid.count;
      to.origin = origin_offset(from, origin);
      to.stride = std::int32_t(from.stride);
    }
    to.tile = choice.box.tile[axis];
    to.tiles = std::int32_t(ceil_div(to.q_count, to.tile));
    to.by_tile = FastDivisor(to.tile);
    to.by_tiles = FastDivisor(to.tiles);
    to.by_stride = FastDivisor(to.stride);
    tiles *= to.tiles;
  }
  params.table = tables.layout;
  params.shared = shared_layout(work.config, work.operand, std::max(tables.most_pixels, 1), tables.most_phases);
  params.in_channels = std::int32_t(problem.group_in_channels());
  params.out_channels = std::int32_t(problem.group_out_channels());
  params.conv_groups = std::int32_t(problem.groups);
  params.block_channels = choice.block_channels;
  params.channel_blocks = std::int32_t(ceil_div(params.out_channels, params.block_channels));
  params.phase_blocks = std::int32_t(blocks.size());
  params.chunks = std::int32_t(ceil_div(params.in_channels, work.config.planes * vector));
  params.steps = tables.steps;
  params.splits = choice.splits;
  params.input_vectors = whole_vectors(request.input, 1, vector) && params.in_channels % vector == 0;
  params.by_phase_blocks = FastDivisor(params.phase_blocks);
  params.by_channel_blocks = FastDivisor(params.channel_blocks);
  params.by_splits = FastDivisor(params.splits);
  params.output_channels_inner = channels_inner;
  params.output_vectors = params.output_channels_inner && whole_vectors(request.output, 1, vector) &&
                          params.out_channels % vector == 0 && params.block_channels % vector == 0;

  params.direct = direct_elements(request, choice.box);
  const auto* groups = reinterpret_cast<const ShiftGroup*>(plan.tables.data() + params.table.groups);
  for (int block = 0, index = 0; block < params.phase_blocks; ++block) {
    for (int own = reinterpret_cast<const PhaseBlock*>(plan.tables.data())[block].groups; own > 0; --own, ++index) {
      std::int64_t span = 0;
      for (int axis = 0; axis < kTileAxes; ++axis) {
        span += (groups[index].extent[axis] - 1) * request.input[axis == 0 ? 0 : axis + 1];
      }
      reach = std::max(reach, span);
    }
  }
  if (params.shared.bytes > work.device.shared_per_block) return "its phase table does not fit shared memory";
  if (reach > std::numeric_limits<std::int32_t>::max()) return "a patch spans more than 2**31 elements of the input";
  tiles *= std::int64_t(params.phase_blocks) * params.channel_blocks * params.conv_groups;
  plan.grid = tiles * params.splits;
  if (plan.grid > std::numeric_limits<std::int32_t>::max()) return "more than 2**31 thread blocks";

  PackParams& pack = plan.pack;
  std::copy(request.filter.begin(), request.filter.end(), pack.strides);
  const std::int64_t slabs = std::int64_t(params.conv_groups) * params.channel_blocks * params.steps * params.chunks;
  pack.units = slabs * (work.config.planes * work.config.rows + 1);
  for (int axis = 0; axis < kAxes; ++axis) {
    pack.axes[axis] = problem.axes[axis];
    pack.origin[axis] = origin_offset(problem.axes[axis], choice.origin[axis]);
  }
  pack.table = params.table;
  pack.counters = params.splits > 1 ? std::int32_t(tiles) : 0;
  pack.in_channels = params.in_channels;
  pack.out_channels = params.out_channels;
  pack.block_channels = params.block_channels;
  pack.channel_blocks = params.channel_blocks;
  pack.phase_blocks = params.phase_blocks;
  pack.chunks = params.chunks;
  pack.steps = params.steps;
  pack.rows = work.config.rows;
  pack.planes = work.config.planes;
  pack.operand = work.operand;

  plan.filter_offset = std::int64_t(plan.tables.size());
  plan.arrived_offset = round_up(plan.filter_offset + slabs * work.config.slab_bytes(work.operand), 256);
  plan.partial_offset = round_up(plan.arrived_offset + 4 * std::int64_t(pack.counters), 256);
  const std::int64_t partial =
      params.splits > 1 ? plan.grid * work.config.rows * work.config.pixels * std::int64_t(sizeof(float)) : 0;
  plan.workspace_bytes = plan.partial_offset + partial;
  return plan;
}

std::string refusal(const Request& request) {
  const Problem& problem = request.problem;
  if (request.op != Operator::forward) return "only the forward";
  if (request.dtype == DType::float64) return "tensor cores of this family do not multiply float64";
  double phases = 1, taps = 1;
  for (const Axis& axis : problem.axes) {
    phases *= double(axis.stride);
    taps *= double(axis.filter);
    if (axis.dilation * (axis.filter - 1) / axis.stride > std::numeric_limits<std::int32_t>::max() / 4) {
      return "a shift has more than 29 bits";
    }
  }
  if (phases > 4096) return "more than 4096 phases";
  if (taps > 8192) return "more than 8192 taps";
  return "";
}

}  // namespace

std::variant<GemmPlan, std::string> plan_gemm(const Request& request, const DeviceTraits& device,
                                              const TileConfig& config) {
  if (const std::string reason = refusal(request); !reason.empty()) return reason;
  const Problem& problem = request.problem;
  const Operand operand = operand_of(request.dtype, request.precision);
  const int fitting = blocks_that_fit(config, operand, device);
  if (fitting == 0) return "needs more shared memory than this GPU gives a thread block";
  const Work work{request, device, config, operand, fitting, pixel_capacity(config, operand, device, fitting)};

  const int vector = operand_vector(operand);
  const std::int64_t out_channels = problem.group_out_channels();
  std::optional<Candidate> best;
  std::vector<BlockShifts> best_blocks;
  for (const Origins& origin : origins_of(problem)) {
    std::int64_t q[kTileAxes];
    q_counts(problem, origin, q);
    const std::vector<TileBox> candidates = boxes(config, q);
    // Rows of the output leave whole unless their phases alone exceed the tile: cut W phases make scalar stores.
    const std::int64_t wide = std::min(tap_period(problem.axes[2]), problem.axes[2].filter);
    const std::vector<std::int32_t> channel_counts = channel_blocks(out_channels, config.rows);
    const bool whole_blocks = stores_along_channels(request) && out_channels % vector == 0 &&
                              std::any_of(channel_counts.begin(), channel_counts.end(), [&](std::int64_t channels) {
                                return channels % vector == 0 && channels * wide <= config.rows;
                              });
    for (std::int32_t channels : channel_counts) {
      if (channels > 1 && channels * wide > config.rows) continue;
      // Stored along channels, a block that ends within 16 bytes would make scalar stores.
      if (whole_blocks && channels % vector != 0) continue;
      std::vector<BlockShifts> blocks = block_shifts(problem, origin, config.rows, channels);
      for (const TileBox& box : candidates) {
        for (std::int32_t splits = 1; splits <= 64; splits *= 2) {
          if (splits > 1 && !can_split(work, blocks, q, box, channels, splits)) break;
          // Cutting shifts into groups takes time: not for what loses anyway.
          if (best && cost_of(work, blocks, q, box, channels, splits, Patches::least)->total >= best->cost.total)
            continue;
          const auto cost = cost_of(work, blocks, q, box, channels, splits, Patches::exact);
          if (!cost) break;
          if (!best || cost->total < best->cost.total) {
            best = Candidate{origin, channels, splits, box, *cost};
            best_blocks = blocks;
          }
        }
      }
    }
  }
  if (!best) return "no tile's patch fits shared memory";
  return build(work, *best, best_blocks);
}

GemmLaunch bind(const GemmPlan& plan, const Pointers& pointers) {
  GemmLaunch launch{plan.params, plan.pack};
  char* workspace = static_cast<char*>(pointers.workspace);
  launch.pack.filter = pointers.filter;
  launch.pack.tables = workspace;
  launch.pack.packed = workspace + plan.filter_offset;
  launch.gemm.input = pointers.input;
  launch.gemm.bias = pointers.bias;
  launch.gemm.output = pointers.output;
  launch.gemm.tables = workspace;
  launch.gemm.filter = workspace + plan.filter_offset;
  if (plan.params.splits > 1) {
    launch.pack.arrived = launch.gemm.arrived = reinterpret_cast<std::uint32_t*>(workspace + plan.arrived_offset);
    launch.gemm.partial = reinterpret_cast<float*>(workspace + plan.partial_offset);
  }
  // The plan counts on torch's alignment; views may have less.
  if (reinterpret_cast<std::uintptr_t>(pointers.input) % 16 != 0) launch.gemm.input_vectors = 0;
  if (reinterpret_cast<std::uintptr_t>(pointers.output) % 16 != 0) launch.gemm.output_vectors = 0;
  if (reinterpret_cast<std::uintptr_t>(pointers.output) % (2 * operand_bytes(plan.operand)) != 0 &&
      launch.gemm.direct == 2) {
    launch.gemm.direct = 1;
  }
  return launch;
}

}  // namespace convt
