#include "launch/gemm_plan.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "launch/gemm_search.hpp"
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

// Patches of few steps are used up before the next one has come, unless more are on their way. Where a patch lasts, or is all that a tile
// has, running further ahead gains nothing and was up to a tenth slower (H200).
std::int32_t wanted_stages(const std::vector<BlockShifts>& blocks, std::int32_t chunks) {
  std::int64_t steps = 0, patches = 0;
  for (const BlockShifts& block : blocks) {
    steps += std::int64_t(block.shifts.size());
    patches += std::int64_t(block.spans.size());
  }
  if (steps >= 4 * patches) return kPatchStages;
  const bool many = patches * chunks >= 4 * std::int64_t(blocks.size());
  return many && steps < 2 * patches ? kMostPatchStages : kPatchStages + 1;
}

// The copy of any of the patches, which all have the same shape.
PatchBox box_of(const GemmWork& work, const PatchShape& patch) {
  const GemmShape& shape = work.shape;
  const int bytes = operand_bytes(work.operand);
  PatchBox box{};
  const bool turned = work.way == WayIn::turned, rows = work.way == WayIn::rows;
  // Turned groups lie one behind the other, as further images.
  const std::int64_t channels =
      turned ? turn_shape(shape, work.operand).pitch : shape.in_channels * shape.problem.groups;
  box.lines = !rows;
  // Where there is one, wherever the next would be.
  const auto tell = [&](int at, std::int64_t extent, std::int64_t stride, std::int32_t count, std::int64_t step) {
    box.extent[at] = extent;
    box.stride[at] = at == 0 ? bytes : extent == 1 ? 16 : stride * bytes;
    box.count[at] = count;
    box.step[at] = std::int32_t(step);
  };
  const int vector = operand_vector(work.operand);
  tell(rows ? 3 : 0, channels, shape.input[1], rows ? vector : work.config.planes * vector, 1);
  for (int axis = 0; axis < kAxes; ++axis) {
    const GemmShape::Along& along = shape.axes[axis];
    const std::int32_t count = axis == kAxes - 1 ? patch.pitch[axis] : patch.extent[1 + axis];
    tell(kAxes - 1 - axis + box.lines, along.input, shape.input[2 + axis], count, along.step);
  }
  tell(kBoxAxes - 1, shape.problem.batch * (turned ? shape.problem.groups : 1), shape.input[0], patch.extent[0], 1);
  return box;
}

std::variant<GemmPlan, std::string> build(const GemmWork& work, const GemmChoice& choice, const Request& request) {
  const GemmShape& shape = work.shape;
  const Problem& problem = shape.problem;
  GemmPlan plan;
  plan.op = shape.op;
  plan.config = work.config;
  plan.operand = work.operand;
  plan.way = work.way;
  plan.origin = choice.origin;
  plan.cost = choice.cost;
  const int vector = operand_vector(work.operand);
  const bool channels_inner = shape.stores_along_channels();
  const std::vector<BlockShifts>& blocks = *choice.blocks;
  GemmTables tables =
      gemm_tables(shape, blocks, choice.box, work.limits(),
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
    std::int32_t used = 1;   // pixels of a run from its first position to its last
    for (int axis = 0; axis < kTileAxes; ++axis) {
      used += (choice.box.tile[axis] / choice.box.runs[axis] - 1) * patch.pitch[axis];
    }
    for (std::int32_t at = 0; at < std::int32_t(std::size(params.runs)); ++at) {
      std::int32_t rest = at * kGroupPixels / choice.box.run, pixel = at * kGroupPixels % choice.box.run;
      if (pixel >= used) continue;
      for (int axis = kTileAxes - 1; axis >= 0; --axis) {
        pixel += rest % choice.box.runs[axis] * (choice.box.tile[axis] / choice.box.runs[axis]) * patch.pitch[axis];
        rest /= choice.box.runs[axis];
      }
      if (rest == 0) params.runs[at] = pixel;   // others lie outside the tile, and multiply its first pixels
    }
  }
  params.table = tables.layout;
  params.chunks = std::int32_t(ceil_div(shape.in_channels, work.config.planes * vector));
  // As many stages as are wanted, where there is room for them.
  const auto lay_out = [&](std::int32_t patch_stages, std::int32_t row_stages, std::int32_t slice_stages) {
    const SharedLayout layout =
        shared_layout(work.config, work.operand, work.way, std::max(tables.most_pixels, 1), tables.most_phases,
                      tables.interleaved, patch_stages, row_stages, slice_stages);
    const bool fits = layout.bytes <= shared_capacity(work.device, work.blocks);
    if (fits || params.shared.bytes == 0) params.shared = layout;
    return fits;
  };
  const WayOut leaves = way_out(work, choice.box, choice.block_channels);
  const bool apart = work.stores_apart(leaves);
  std::int32_t slices = apart ? 0 : 1;
  lay_out(kPatchStages, kRowStages, slices);
  if (in_lines(work.way)) {
    plan.box = box_of(work, patch_shape(choice.box, {}));
    if (work.way == WayIn::turned) {
      plan.group_images = std::int32_t(problem.batch);
    } else {
      plan.group_channels = std::int32_t(shape.in_channels);
    }
    const std::int32_t patches = work.way == WayIn::rows ? kPatchStages : wanted_stages(blocks, params.chunks);
    const std::int32_t rows = work.way == WayIn::rows ? 2 * kRowStages : kRowStages;
    const auto more_slices = [&] {
      for (std::int32_t stages = kSliceStages + 1; apart && stages <= kMostSliceStages; ++stages) {
        if (lay_out(params.shared.patch_stages, work.way == WayIn::rows ? params.shared.row_stages : kRowStages,
                    stages))
          slices = stages;
      }
    };
    lay_out(kPatchStages, rows, slices);
    for (std::int32_t stages = kPatchStages + 1; stages <= patches; ++stages) lay_out(stages, rows, slices);
    more_slices();
  }
  params.in_channels = std::int32_t(shape.in_channels);
  params.out_channels = std::int32_t(shape.out_channels);
  params.conv_groups = std::int32_t(problem.groups);
  params.block_channels = choice.block_channels;
  params.channel_blocks = std::int32_t(ceil_div(params.out_channels, params.block_channels));
  params.phase_blocks = std::int32_t(blocks.size());
  params.steps = tables.steps;
  params.splits = choice.splits;
  params.input_vectors = whole_vectors(shape.input, shape.in_channels, vector);
  params.by_phase_blocks = FastDivisor(params.phase_blocks);
  params.by_channel_blocks = FastDivisor(params.channel_blocks);
  params.by_splits = FastDivisor(params.splits);
  params.output_channels_inner = channels_inner;
  params.output_vectors =
      channels_inner && whole_vectors(shape.output, shape.out_channels, vector) && params.block_channels % vector == 0;

  params.patch_work = work.patch_work();
  params.way_out = leaves;
  params.store_bytes = aligned_bytes(shape, operand_bytes(work.operand));
  params.order = params.way_out == WayOut::rows ? order_of(work) : RowOrder{};
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
  if (work.way == WayIn::turned) {
    plan.turn = plan_turning(turn_shape(gemm_shape(request), work.operand), work.operand);
    plan.turned_offset = round_up(plan.workspace_bytes, 256);
    plan.workspace_bytes = plan.turned_offset + turned_bytes(plan.turn, work.operand);
  }
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
                                              const TileConfig& config, GemmSearch& search) {
  if (const std::string reason = gemm_refusal(request); !reason.empty()) return reason;
  const Operand operand = operand_of(request.dtype, request.precision);
  if (!config.has(operand)) return config.grouped() ? kTruncates : kNoRegisters;
  if (config.grouped() && device.capability != 90) return kHoppers;
  const int fitting = blocks_that_fit(config, operand, device);
  if (fitting == 0) return "needs more shared memory than this GPU gives a thread block";
  // As it is, or with outputs as phases that the filter does not have: rows that would be empty have channels then.
  struct Variant {
    GemmSearch& search;
    GemmShape turned;
  };
  std::vector<Variant> variants;
  const GemmShape& shape = search.shape();
  const auto add = [&](GemmSearch& variant) {
    variants.push_back({variant, config.grouped() ? turned_shape(variant.shape(), operand) : variant.shape()});
  };
  const bool is_asked = device.outputs_together > 0;
  const std::int64_t fewest = is_asked ? device.outputs_together : 2, most = is_asked ? fewest : kMostTogether;
  if (!is_asked) add(search);
  for (std::int64_t outputs = fewest; config.grouped() && outputs <= most; ++outputs) {
    for (int axis = 0; axis < kAxes; ++axis) {
      if (fills_rows(shape, axis, outputs, config.rows)) add(search.together(axis, outputs));
    }
  }
  if (variants.empty()) add(search);
  const auto work_in = [&](const Variant& variant, WayIn way) {
    const GemmShape& read = way == WayIn::turned ? variant.turned : variant.search.shape();
    return gemm_work(read, device, config, operand, fitting, way);
  };
  std::optional<GemmChoice> best;
  const Variant* best_variant = nullptr;
  WayIn best_way = WayIn::gathered;
  const auto weigh_one = [&](const Variant& variant, WayIn way) {
    auto choice = variant.search.best(work_in(variant, way));
    if (choice && way == WayIn::turned) {
      choice->cost.turning = turning_time(turn_shape(shape, operand), operand, device);
      choice->cost.total += choice->cost.turning;
    }
    if (!choice || (best && best->cost.total <= choice->cost.total)) return;
    best = choice;
    best_variant = &variant;
    best_way = way;
  };
  const auto weigh = [&](WayIn way) {
    for (const Variant& variant : variants) {
      if (comes(way, variant.search.shape(), config, operand)) weigh_one(variant, way);
    }
  };
  // What can come in boxes as it lies comes so; other ways are weighed.
  if (device.tensor_copies > 0) weigh(WayIn::boxes);
  const bool weighs = device.tensor_copies == 1 && !best;
  if (weighs || (!best && device.tensor_copies == 2)) weigh(WayIn::turned);
  if (weighs || (!best && device.tensor_copies == 3)) weigh(WayIn::rows);
  if (weighs || !best) weigh(WayIn::gathered);
  if (best) return build(work_in(*best_variant, best_way), *best, request);
  return "no tile's patch fits shared memory";
}

GemmLaunch bind(const GemmPlan& plan, const Pointers& pointers) {
  GemmLaunch launch{plan.params, plan.pack, plan.way, plan.box, plan.turn};
  char* workspace = static_cast<char*>(pointers.workspace);
  launch.pack.filter = pointers.filter;
  align_packing(launch.pack);
  launch.pack.tables = workspace;
  launch.pack.packed = workspace + plan.filter_offset;
  const bool forward = plan.op == Operator::forward;
  launch.gemm.input = forward ? pointers.input : pointers.output;
  if (plan.way == WayIn::turned) {
    void* turned = workspace + plan.turned_offset;
    place_turning(launch.turn, launch.gemm.input, turned);
    launch.gemm.input = turned;
  }
  launch.gemm.bias = pointers.bias;
  launch.gemm.output = forward ? pointers.output : pointers.input;
  launch.gemm.tables = workspace;
  launch.gemm.filter = workspace + plan.filter_offset;
  if (plan.params.splits > 1) {
    launch.pack.arrived = launch.gemm.arrived = reinterpret_cast<std::uint32_t*>(workspace + plan.arrived_offset);
    launch.gemm.partial = reinterpret_cast<float*>(workspace + plan.partial_offset);
  }
  // The plan counts on torch's alignment; views may have less.
  launch.box.base = static_cast<const char*>(launch.gemm.input);
  if (reinterpret_cast<std::uintptr_t>(launch.gemm.input) % 16 != 0) {
    launch.gemm.input_vectors = 0;
    launch.way = WayIn::gathered;
  }
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
