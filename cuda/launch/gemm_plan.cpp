#include "launch/gemm_plan.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>

#include "launch/gemm_cost.hpp"
#include "launch/pack_plan.hpp"

namespace convt {

std::string name_of(const TileConfig& config) {
  const std::string tile =
      std::to_string(config.rows) + "x" + std::to_string(config.pixels) + "p" + std::to_string(config.planes);
  if (config.grouped()) return tile + "g" + std::to_string(config.groups());
  return tile + "w" + std::to_string(config.warps_m) + "x" + std::to_string(config.warps_n);
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

// What a candidate's time depends on.
struct Candidate {
  Origins origin{};
  std::int32_t block_channels = 0;
  std::int32_t splits = 1;
  TileBox box{};
  GemmCost cost;
  std::int32_t rows = 0;            // of a tile, that may have channels
};

bool can_split(const GemmWork& work, const Launch& launch, std::size_t spans) {
  const double blocks = launch.tiles * launch.each();
  return launch.splits <= work.chunks() * double(spans) &&
         blocks * work.config.rows * work.config.pixels * 4 <= kMaxPartialBytes &&
         blocks <= 2.0 * work.device.multiprocessors * work.blocks;
}

// Without output phases there is nothing to choose.
std::vector<Origins> origins_of(const GemmShape& shape) {
  const Problem& problem = shape.problem;
  std::vector<Origins> made = {{Origin::padded, Origin::padded, Origin::padded}};
  if (shape.op == Operator::grad_input) return made;
  for (int axis = 0; axis < kAxes; ++axis) {
    const Axis& along = problem.axes[axis];
    if (along.padding % along.stride == 0) continue;   // the same but for its place
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

// Warpgroups that store rows keep all W phases of a channel in the same rows of a wgmma.
RowOrder order_of(const GemmShape& shape, const TileConfig& config, std::int32_t element_bytes) {
  RowOrder order;
  if (!leaves_by_rows(shape, config, element_bytes)) return order;
  order.phases = std::int32_t(shape.axes[2].stride);
  order.units = kMmaRows / order.phases;
  order.by_units = FastDivisor(order.units);
  order.by_phases = FastDivisor(order.phases);
  return order;
}

// Positions that rows of a tile may begin at the multiples of: pieces of 16 bytes do so as well.
std::int32_t even_positions(const GemmShape& shape, const TileConfig& config, std::int32_t element_bytes) {
  if (!leaves_by_rows(shape, config, element_bytes)) return 2;
  const std::int64_t elements = aligned_bytes(shape, element_bytes) / element_bytes;
  return std::int32_t(std::max<std::int64_t>(2, elements / std::gcd(elements, shape.axes[2].stride)));
}

// The positions that tiles cover: of grad_input, the pixels that it writes.
QGrid grid_of(const GemmShape& shape, const Origins& origin, int axis) {
  if (shape.op == Operator::grad_input) return {0, shape.axes[axis].output};
  return q_grid(shape.problem.axes[axis], origin[axis]);
}

std::variant<GemmPlan, std::string> build(const GemmWork& work, const Candidate& choice, const Request& request) {
  const GemmShape& shape = work.shape;
  const Problem& problem = shape.problem;
  GemmPlan plan;
  plan.op = shape.op;
  plan.config = work.config;
  plan.operand = work.operand;
  plan.origin = choice.origin;
  plan.cost = choice.cost;
  const int vector = operand_vector(work.operand);
  const bool channels_inner = shape.stores_along_channels();
  const std::vector<BlockShifts> blocks = block_shifts(shape, choice.origin, choice.rows, choice.block_channels);
  GemmTables tables =
      gemm_tables(shape, blocks, choice.box, {work.capacity, work.config.planes},
                  {vector, work.config.threads(), choice.block_channels, shape.output[1], channels_inner});
  plan.tables = std::move(tables.bytes);

  GemmParams& params = plan.params;
  std::copy(shape.input.begin(), shape.input.end(), params.input_strides);
  std::copy(shape.output.begin(), shape.output.end(), params.output_strides);
  params.bias_stride = request.bias_stride;
  std::int64_t tiles = 1, reach = 0;
  for (int axis = 0; axis < kTileAxes; ++axis) {
    TileAxis& to = params.axes[axis];
    to.input = to.output = to.q_count = problem.batch;
    to.stride = to.step = 1;
    if (axis > 0) {
      const GemmShape::Along& from = shape.axes[axis - 1];
      const QGrid grid = grid_of(shape, choice.origin, axis - 1);
      to.input = from.input;
      to.output = from.output;
      to.q_begin = grid.begin;
      to.q_count = grid.count;
      if (shape.op == Operator::forward) to.origin = origin_offset(problem.axes[axis - 1], choice.origin[axis - 1]);
      to.stride = std::int32_t(from.stride);
      to.step = std::int32_t(from.step);
    }
    to.tile = choice.box.tile[axis];
    to.tiles = std::int32_t(ceil_div(to.q_count, to.tile));
    to.by_tile = FastDivisor(to.tile);
    to.by_tiles = FastDivisor(to.tiles);
    to.by_stride = FastDivisor(to.stride);
    tiles *= to.tiles;
  }
  if (choice.box.packed) {
    const PatchShape patch = patch_shape(choice.box, {});
    std::int32_t run_pitch = choice.box.run;
    for (int axis = kTileAxes - 1; axis >= 0; --axis) {
      TileAxis& to = params.axes[axis];
      to.pitch = patch.pitch[axis];
      to.run_pitch = run_pitch;
      to.by_run = FastDivisor(choice.box.tile[axis] / choice.box.runs[axis]);
      run_pitch *= choice.box.runs[axis];
    }
    for (std::int32_t at = 0; at < std::int32_t(std::size(params.runs)); ++at) {
      std::int32_t rest = at * kGroupPixels / choice.box.run, pixel = at * kGroupPixels % choice.box.run;
      for (int axis = kTileAxes - 1; axis >= 0; --axis) {
        pixel += rest % choice.box.runs[axis] * (choice.box.tile[axis] / choice.box.runs[axis]) * patch.pitch[axis];
        rest /= choice.box.runs[axis];
      }
      if (rest == 0) params.runs[at] = pixel;   // others lie outside the tile, and multiply its first pixels
    }
  }
  params.table = tables.layout;
  params.shared =
      shared_layout(work.config, work.operand, std::max(tables.most_pixels, 1), tables.most_phases, tables.interleaved);
  params.in_channels = std::int32_t(shape.in_channels);
  params.out_channels = std::int32_t(shape.out_channels);
  params.conv_groups = std::int32_t(problem.groups);
  params.block_channels = choice.block_channels;
  params.channel_blocks = std::int32_t(ceil_div(params.out_channels, params.block_channels));
  params.phase_blocks = std::int32_t(blocks.size());
  params.chunks = std::int32_t(ceil_div(params.in_channels, work.config.planes * vector));
  params.steps = tables.steps;
  params.splits = choice.splits;
  params.input_vectors = whole_vectors(shape.input, shape.in_channels, vector);
  params.by_phase_blocks = FastDivisor(params.phase_blocks);
  params.by_channel_blocks = FastDivisor(params.channel_blocks);
  params.by_splits = FastDivisor(params.splits);
  params.output_channels_inner = channels_inner;
  params.output_vectors =
      channels_inner && whole_vectors(shape.output, shape.out_channels, vector) && params.block_channels % vector == 0;

  params.way_out = way_out(work, choice.box, choice.block_channels);
  params.store_bytes = aligned_bytes(shape, operand_bytes(work.operand));
  params.order =
      params.way_out == WayOut::rows ? order_of(shape, work.config, operand_bytes(work.operand)) : RowOrder{};
  params.order.by_channels = FastDivisor(params.block_channels);
  params.across_log2 = params.order.phases == 1 ? 3 : params.order.phases == 2 ? 4 : 5;   // 8 pieces of every phase
  params.unit_pitch = kExitBytesOfRow * params.order.phases + (params.order.phases > 1 ? 32 : 16);
  const auto* groups = reinterpret_cast<const ShiftGroup*>(plan.tables.data() + params.table.groups);
  for (int block = 0, index = 0; block < params.phase_blocks; ++block) {
    for (int own = reinterpret_cast<const PhaseBlock*>(plan.tables.data())[block].groups; own > 0; --own, ++index) {
      std::int64_t span = 0;
      for (int axis = 0; axis < kTileAxes; ++axis) {
        const std::int64_t pixels = std::int64_t(groups[index].extent[axis]) * params.axes[axis].step;
        span += pixels * shape.input[axis == 0 ? 0 : axis + 1];
        reach = std::max(reach, pixels);
      }
      reach = std::max(reach, span);
    }
  }
  if (params.shared.bytes > work.device.shared_per_block) return "its phase table does not fit shared memory";
  if (reach > std::numeric_limits<std::int32_t>::max()) return "a patch spans more than 2**31 elements of the input";
  tiles *= std::int64_t(params.phase_blocks) * params.channel_blocks * params.conv_groups;
  plan.grid = tiles * params.splits;
  if (plan.grid > std::numeric_limits<std::int32_t>::max()) return "more than 2**31 thread blocks";
  params.tiles = std::int32_t(tiles);
  if (work.config.grouped()) {
    plan.grid = std::min(tiles, std::int64_t(work.device.multiprocessors) * work.blocks);
  }

  const std::int64_t counters = params.splits > 1 ? tiles : 0;
  plan.pack = plan_packing(shape, plan, request.filter, counters, work.device);
  const std::int64_t slabs = std::int64_t(params.conv_groups) * params.channel_blocks * params.steps * params.chunks;
  plan.filter_offset = std::int64_t(plan.tables.size());
  plan.arrived_offset = round_up(plan.filter_offset + slabs * work.config.slab_bytes(work.operand), 256);
  plan.partial_offset = round_up(plan.arrived_offset + 4 * counters, 256);
  const std::int64_t partial =
      params.splits > 1 ? plan.grid * work.config.rows * work.config.pixels * std::int64_t(sizeof(float)) : 0;
  plan.workspace_bytes = plan.partial_offset + partial;
  return plan;
}

}  // namespace

std::string gemm_refusal(const Request& request) {
  if (request.dtype == DType::float64) return "tensor cores of this family do not multiply float64";
  double phases = 1, taps = 1;
  for (const Axis& axis : request.problem.axes) {
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

std::variant<GemmPlan, std::string> plan_gemm(const Request& request, const DeviceTraits& device,
                                              const TileConfig& config) {
  if (request.op == Operator::grad_weight) return "a weight gradient is another product";
  if (const std::string reason = gemm_refusal(request); !reason.empty()) return reason;
  const Operand operand = operand_of(request.dtype, request.precision);
  if (!config.has(operand)) return config.grouped() ? kTruncates : kNoRegisters;
  if (config.grouped() && device.capability != 90) return "its instructions are Hopper's";
  const GemmShape shape = gemm_shape(request);
  const int fitting = blocks_that_fit(config, operand, device);
  if (fitting == 0) return "needs more shared memory than this GPU gives a thread block";
  const bool interleaved = shape.axes[2].step > 1;
  const GemmWork work{shape,
                      device,
                      config,
                      operand,
                      fitting,
                      pixel_capacity(config, operand, device, fitting, interleaved),
                      tensor_bytes(shape.problem, operand_bytes(operand)),
                      leaves_by_pixels(shape, config),
                      leaves_by_rows(shape, config, operand_bytes(operand))};

  const int vector = operand_vector(operand);
  const std::int64_t out_channels = shape.out_channels;
  std::optional<Candidate> best;
  for (const Origins& origin : origins_of(shape)) {
    std::int64_t q[kTileAxes] = {shape.problem.batch};
    for (int axis = 0; axis < kAxes; ++axis) q[1 + axis] = grid_of(shape, origin, axis).count;
    const std::int32_t even = even_positions(shape, config, operand_bytes(operand));
    std::optional<Packing> packing;   // of warpgroups: what boxes depend on, of the shifts
    std::vector<TileBox> candidates;
    if (!config.grouped()) candidates = boxes(config.pixels, q);
    // Rows of the output leave whole unless their phases alone exceed the tile: cut W phases make scalar stores.
    const std::int64_t wide = shape.reached_phases(2);
    const RowOrder order = order_of(shape, config, operand_bytes(operand));
    const std::int32_t rows = config.rows / kMmaRows * order.units * order.phases;
    const std::vector<std::int32_t> channel_counts = channel_blocks(out_channels, rows);
    const bool by_pixels = leaves_by_pixels(shape, config);
    const bool whole_blocks = shape.stores_along_channels() && out_channels % vector == 0 &&
                              std::any_of(channel_counts.begin(), channel_counts.end(), [&](std::int64_t channels) {
                                return channels % vector == 0 && channels * wide <= rows;
                              });
    for (std::int32_t channels : channel_counts) {
      // Stored along channels, a block that ends within 16 bytes would make scalar stores.
      if ((whole_blocks || by_pixels) && channels % vector != 0) continue;
      if (channels > (by_pixels ? 8 : 1) && channels * wide > rows) continue;
      std::vector<BlockShifts> blocks = block_shifts(shape, origin, rows, channels);
      const TileFloor floor(work, blocks, channels);
      if (best && floor.time(q) >= best->cost.total) continue;
      if (config.grouped() && packing != packing_of(blocks, even)) {
        packing = packing_of(blocks, even);
        candidates = packed_boxes(config.pixels, q, *packing);
      }
      const double channel_tiles = double(shape.problem.groups * ceil_div(out_channels, channels));
      for (const TileBox& box : candidates) {
        Launch launch{box.count * channel_tiles, double(blocks.size()), 1};
        std::optional<TileWork> tile;   // cutting shifts into groups takes time: not for what loses anyway
        for (; launch.splits <= (config.grouped() ? 1 : 64); launch.splits *= 2) {
          if (launch.splits > 1 && !can_split(work, launch, blocks[0].spans.size())) break;
          if (best && floor.time(box, launch) >= best->cost.total) continue;
          if (!tile) tile = work_of_tile(work, blocks, box, channels);
          if (!tile) break;
          const GemmCost cost = cost_of(work, *tile, launch);
          if (!best || cost.total < best->cost.total) {
            best = Candidate{origin, channels, launch.splits, box, cost, rows};
          }
        }
      }
    }
  }
  if (!best) return "no tile's patch fits shared memory";
  return build(work, *best, request);
}

GemmLaunch bind(const GemmPlan& plan, const Pointers& pointers) {
  GemmLaunch launch{plan.params, plan.pack};
  char* workspace = static_cast<char*>(pointers.workspace);
  launch.pack.filter = pointers.filter;
  align_packing(launch.pack);
  launch.pack.tables = workspace;
  launch.pack.packed = workspace + plan.filter_offset;
  const bool forward = plan.op == Operator::forward;
  launch.gemm.input = forward ? pointers.input : pointers.output;
  launch.gemm.bias = pointers.bias;
  launch.gemm.output = forward ? pointers.output : pointers.input;
  launch.gemm.tables = workspace;
  launch.gemm.filter = workspace + plan.filter_offset;
  if (plan.params.splits > 1) {
    launch.pack.arrived = launch.gemm.arrived = reinterpret_cast<std::uint32_t*>(workspace + plan.arrived_offset);
    launch.gemm.partial = reinterpret_cast<float*>(workspace + plan.partial_offset);
  }
  // The plan counts on torch's alignment; views may have less.
  if (reinterpret_cast<std::uintptr_t>(launch.gemm.input) % 16 != 0) launch.gemm.input_vectors = 0;
  if (reinterpret_cast<std::uintptr_t>(launch.gemm.output) % 16 != 0) launch.gemm.output_vectors = 0;
  if (reinterpret_cast<std::uintptr_t>(launch.gemm.output) % (2 * operand_bytes(plan.operand)) != 0 &&
      launch.gemm.way_out == WayOut::pairs) {
    launch.gemm.way_out = WayOut::singles;
  }
  while (reinterpret_cast<std::uintptr_t>(launch.gemm.output) % launch.gemm.store_bytes != 0) {
    launch.gemm.store_bytes /= 2;
  }
  launch.gemm.program = program_as<float>(pointers.program);
  // Programs map pieces on their way from shared memory to the output.
  if (launch.gemm.program.count > 0) {
    const FastDivisor by_channels = launch.gemm.order.by_channels;
    launch.gemm.way_out = WayOut::staged;
    launch.gemm.order = RowOrder{};
    launch.gemm.order.by_channels = by_channels;
    launch.pack.order = launch.gemm.order;
  }
  return launch;
}

}  // namespace convt
