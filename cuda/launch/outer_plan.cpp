#include "launch/outer_plan.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>

#include "launch/outer_layout.hpp"

namespace convt {

std::string name_of(const OuterConfig& config) {
  return "gw" + std::to_string(config.channels) + "x" + std::to_string(config.rows()) + "g" +
         std::to_string(config.groups);
}

const std::vector<OuterConfig>& outer_configs() {
  static const std::vector<OuterConfig> configs = {
#define CONVT_OUTER_CONFIG(...) OuterConfig{__VA_ARGS__},
#include "config/outer_configs.def"
#undef CONVT_OUTER_CONFIG
  };
  return configs;
}

namespace {

constexpr std::int64_t kUnlimited = std::numeric_limits<std::int32_t>::max();

double boxes_of(const OuterWork& work, const TileBox& box) {
  double boxes = double(ceil_div(work.problem().batch, box.tile[0]));
  for (int axis = 0; axis < kAxes; ++axis) {
    boxes *= double(ceil_div(work.problem().axes[axis].input, box.tile[1 + axis]));
  }
  return boxes;
}

double tiles_of(const OuterWork& work, const OuterCandidate& choice) {
  return double(work.problem().groups * work.row_blocks() * ceil_div(work.octets(), choice.octets)) *
         double(choice.tap_blocks(work.problem()));
}

// Cycles of a multiprocessor for the products of a box, with fragments from registers, as they were measured.
double products_of(const OuterWork& work) {
  const bool wide = is_float32(work.operand);
  return work.config.pixels(work.operand) * double(work.config.rows()) * work.config.channels / (wide ? 1024 : 2048) *
         (wide ? 1.7 : 1.25);
}

// Cycles are a multiprocessor's, for one box of one thread block; its factors are fitted to 248 layers on an H200.
GemmCost cost_of(const OuterWork& work, const OuterCandidate& choice) {
  const OuterConfig& config = work.config;
  const double channels = double(choice.octets) * kOctet, pixels = double(choice.pixels()),
               box = config.pixels(work.operand);
  const double elements = config.channels * box + channels * pixels;
  const double rate = is_float32(work.operand) ? 1024 : 2048;   // products per cycle
  const double input_channels = std::min<double>(config.channels, double(work.problem().group_in_channels())),
               patch_channels = std::min<double>(channels, double(work.problem().group_out_channels()));
  const double input_copies = input_channels * box / input_width(work, choice) / config.loaders();
  const double patch_copies = patch_channels * pixels / patch_width(work, choice) / config.loaders();
  const double through =
      (input_by_registers(work, choice) ? input_copies : 0) + (patch_by_registers(work, choice) ? patch_copies : 0);
  const double row =
      work.inner == Innermost::channels ? channels * work.bytes() : double(choice.extent[3]) * work.bytes();
  const double fragments = config.warps() * config.row_tiles * double(config.steps);
  const double loads = (is_float32(work.operand)            ? 4
                        : work.inner == Innermost::channels ? 4
                                                            : 8) *
                       double(choice.conflicts);
  // What lanes read one by one keeps shared memory from the products.
  const bool wide = is_float32(work.operand), turns = wide && work.inner == Innermost::channels;
  const double products = products_of(work);
  const double shared = (fragments * loads + box * config.rows() / rate * 64 + 2 * elements * work.bytes() / 128) *
                        (wide                                ? 1.55
                         : work.inner == Innermost::channels ? 1.12
                                                             : 1.25);
  const double copies = input_copies + patch_copies;
  const double issue = config.loading / 2.0 *
                           (copies * (work.inner == Innermost::channels ? 12 : 7) + 250 +
                            (is_float32(work.operand) ? input_copies * 8 : 0)) +
                       through / (2 * config.loading) * 2000 + (turns ? 700 : 0);
  const double l2 = elements * work.bytes() * (1 + 24 / row);

  const double boxes = boxes_of(work, choice.box), tiles = tiles_of(work, choice);
  const double each = std::ceil(boxes / double(choice.splits));   // boxes of a thread block
  const double per_sm = std::ceil(tiles * double(choice.splits) / work.device.multiprocessors);
  const double cycle = 1e-3 / work.device.clock_ghz, all = per_sm * each * cycle;
  GemmCost cost;
  cost.tensor = products * all;
  cost.shared = shared * all;
  cost.issue = (issue + 1000) * all;   // and the latency of what is loaded behind a box's barrier
  cost.l2 = l2 / 24 * all;
  const bool split = choice.splits > 1;
  const double partial = split ? 8 * work.weights() * double(choice.splits) : 0;   // written and read
  cost.bytes = l2 * boxes * tiles + partial;
  cost.memory = tensor_bytes(work.problem(), work.bytes()) / work.device.memory_gbs * 1e-3;
  const double alone = per_sm * (4000 + double(config.rows()) * config.channels / 6) * cycle;
  const double second = split ? 2.5 + partial / 4.0e6 + double(choice.splits) * 0.01 : 0;
  cost.total = overlapped(cost) + alone + second + 5;
  return cost;
}

// Enough thread blocks for every multiprocessor, or a few rounds of them.
std::vector<std::int64_t> splits_of(const OuterWork& work, double tiles, double boxes) {
  const double most = std::min(boxes, std::max(1.0, kMaxPartialBytes / (4 * work.weights())));
  std::vector<std::int64_t> made = {1};
  for (const double rounds : {0.5, 1.0, 2.0, 3.0, 4.0}) {
    made.push_back(std::int64_t(std::clamp(std::floor(rounds * work.device.multiprocessors / tiles), 1.0, most)));
  }
  std::sort(made.begin(), made.end());
  made.erase(std::unique(made.begin(), made.end()), made.end());
  return made;
}

// With at most so many taps of a block along an axis, and boxes of at most so many positions.
std::optional<OuterCandidate> best_of(const OuterWork& work, std::int64_t most_taps, std::int32_t positions) {
  const Problem& problem = work.problem();
  Positions q = {problem.batch};
  for (int axis = 0; axis < kAxes; ++axis) q[1 + axis] = problem.axes[axis].input;
  const std::int32_t input_piece = widest_piece(work, work.request.input, problem.axes[2].input);
  const std::int32_t patch_piece = widest_piece(work, work.request.output, problem.axes[2].output());
  const std::int32_t stride = std::int32_t(problem.axes[2].stride);
  std::optional<OuterCandidate> best;
  std::int64_t previous = 0;
  for (std::int64_t most = work.config.octets(); most >= 1; most = most > 4 ? most * 3 / 4 : most - 1) {
    OuterCandidate choice;
    choice.octets = ceil_div(work.octets(), ceil_div(work.octets(), most));
    if (choice.octets == previous) continue;
    previous = choice.octets;
    // Whole rows of taps first; blocks of equal size.
    std::int64_t capacity = work.config.octets() / choice.octets;
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      const std::int64_t filter = problem.axes[axis].filter, fewer = std::min({filter, capacity, most_taps});
      choice.taps[axis] = ceil_div(filter, ceil_div(filter, fewer));
      capacity /= choice.taps[axis];
    }
    for (const TileBox& box : boxes(positions, q)) {
      choice.box = box;
      choice.input_piece = input_piece;
      while (box.tile[3] % choice.input_piece != 0) choice.input_piece /= 2;
      std::int32_t widest = patch_piece;
      while (box.tile[3] * stride % widest != 0) widest /= 2;
      const double all = tiles_of(work, choice) * boxes_of(work, box) / work.device.multiprocessors;
      if (best && products_of(work) * all * 1e-3 / work.device.clock_ghz > best->cost.total) continue;
      // Narrower pieces, and pixels phase by phase, where they keep lanes from meeting in a bank.
      for (choice.patch_piece = widest; choice.patch_piece >= 1; choice.patch_piece /= 2) {
        if (choice.patch_piece < widest && (stride == 1 || choice.patch_piece * work.bytes() < 4)) break;
        for (const std::int32_t phases : {1, stride}) {
          if (phases > 1 && choice.patch_piece > 1) break;
          choice.phases = phases;
          measure_patch(work, choice);
          if (!lay_out(work, choice)) break;
          for (const std::int64_t splits : splits_of(work, tiles_of(work, choice), boxes_of(work, box))) {
            choice.splits = splits;
            choice.cost = cost_of(work, choice);
            if (!best || choice.cost.total < best->cost.total) best = choice;
          }
          if (stride == 1 || choice.conflicts == 1) break;
        }
      }
    }
  }
  return best;
}

std::variant<OuterPlan, std::string> build(const OuterWork& work, const OuterCandidate& choice) {
  const Request& request = work.request;
  const Problem& problem = request.problem;
  OuterPlan plan;
  plan.config = work.config;
  plan.operand = work.operand;
  plan.dtype = request.dtype;
  plan.inner = work.inner;
  plan.cost = choice.cost;
  OuterParams& params = plan.params;
  std::copy(request.input.begin(), request.input.end(), params.input_strides);
  std::copy(request.output.begin(), request.output.end(), params.patch_strides);
  double positions = 1;
  std::int64_t of_box = 0, of_patch = 0, most = 0;
  int bits = 0;
  for (int axis = kTileAxes - 1; axis >= 0; --axis) {   // one for the extent itself, and a guard
    const int field = std::bit_width(std::uint64_t(choice.extent[axis]));
    params.axes[axis].shift = bits;
    bits += field + 1;
    if (bits > 32) return "a patch's pixels have coordinates of more than 32 bits";
    params.guards |= 1u << (bits - 1);
    if (axis == 0) params.nowhere = ((1u << field) - 1) << params.axes[axis].shift;
  }
  for (int axis = 0; axis < kTileAxes; ++axis) {
    OuterAxis& to = params.axes[axis];
    to.input = to.output = problem.batch;
    to.step = 1;
    if (axis > 0) {
      const Axis& along = problem.axes[axis - 1];
      to.input = along.input;
      to.output = along.output();
      to.step = std::int32_t(along.stride);
    }
    to.tile = choice.box.tile[axis];
    to.tiles = std::int32_t(ceil_div(to.input, to.tile));
    to.extent = std::int32_t(choice.extent[axis]);
    to.phases = axis == 3 ? choice.phases : 1;
    to.by_tile = FastDivisor(to.tile);
    to.by_tiles = FastDivisor(to.tiles);
    to.by_extent = FastDivisor(to.extent);
    to.by_width = FastDivisor(to.extent / to.phases);
    positions *= to.tiles;
    const int stride = axis == 0 ? 0 : 1 + axis;
    of_box += (to.tile - 1) * request.input[stride];
    of_patch += (to.extent - 1) * request.output[stride];
    most = std::max({most, request.input[stride], request.output[stride]});
  }
  if (positions > kUnlimited) return "more than 2**31 boxes of pixels";
  if (std::max({of_box, of_patch, most}) > kUnlimited) return "a patch spans more than 2**31 elements";

  const bool split = choice.splits > 1;
  const std::int64_t in_channels = problem.group_in_channels(), out_channels = problem.group_out_channels();
  std::vector<OuterBlock> blocks;
  std::vector<OuterTap> taps;
  const auto& [along_d, along_h, along_w] = problem.axes;
  for (std::int64_t d = 0; d < along_d.filter; d += choice.taps[0]) {
    for (std::int64_t h = 0; h < along_h.filter; h += choice.taps[1]) {
      for (std::int64_t w = 0; w < along_w.filter; w += choice.taps[2]) {
        const std::int64_t first[kAxes] = {d, h, w};
        OuterBlock block{{}, std::int32_t(taps.size()), 0, 0};
        for (int axis = 0; axis < kAxes; ++axis) {
          block.low[axis] = std::int32_t(low_of(work, choice, axis, first[axis]));
        }
        std::int64_t end[kAxes];
        for (int axis = 0; axis < kAxes; ++axis) {
          end[axis] = std::min(first[axis] + choice.taps[axis], problem.axes[axis].filter);
        }
        for (std::int64_t z = d; z < end[0]; ++z) {
          for (std::int64_t y = h; y < end[1]; ++y) {
            for (std::int64_t x = w; x < end[2]; ++x) {
              const std::int64_t at[kAxes] = {z, y, x};
              std::int64_t pixel = 0, result = 0;
              for (int axis = 0; axis < kAxes; ++axis) {
                const Axis& along = problem.axes[axis];
                const std::int64_t phases = params.axes[1 + axis].phases, extent = choice.extent[1 + axis];
                const std::int64_t of_row = along.dilation * at[axis] - along.padding - block.low[axis];
                pixel = pixel * extent + of_row % phases * (extent / phases) + of_row / phases;
                result += at[axis] * request.filter[2 + axis];
              }
              const std::int64_t flat = (z * along_h.filter + y) * along_w.filter + x;
              taps.push_back({split ? flat * problem.in_channels * out_channels : result, std::int32_t(pixel), 0});
            }
          }
        }
        block.taps = std::int32_t(taps.size()) - block.first_tap;
        plan.taps = std::max(plan.taps, block.taps);
        blocks.push_back(block);
      }
    }
  }
  params.table.taps = append_table(plan.tables, taps);
  params.table.blocks = append_table(plan.tables, blocks);
  plan.tables.resize(round_up(std::int64_t(plan.tables.size()), 16));
  params.table.bytes = std::int32_t(plan.tables.size());

  params.shared = choice.shared;
  params.stages = choice.stages;
  params.input_piece = choice.input_piece;
  params.patch_piece = choice.patch_piece;
  params.input_by_registers = input_by_registers(work, choice);
  params.patch_by_registers = patch_by_registers(work, choice);
  params.patch_pixels = std::int32_t(choice.pixels());
  params.input_entries = work.config.pixels(work.operand) / choice.input_piece;
  params.patch_entries = params.patch_pixels / choice.patch_piece;
  params.pixel_bytes = choice.pixel_bytes;
  params.channel_bytes = choice.channel_bytes;
  params.octet_bytes = choice.octet_bytes;
  params.lanes_log2 = choice.lanes_log2;
  params.in_channels = std::int32_t(in_channels);
  params.out_channels = std::int32_t(out_channels);
  params.conv_groups = std::int32_t(problem.groups);
  params.block_octets = std::int32_t(choice.octets);
  params.row_blocks = std::int32_t(work.row_blocks());
  params.channel_blocks = std::int32_t(ceil_div(work.octets(), choice.octets));
  params.tap_blocks = std::int32_t(blocks.size());
  params.boxes = std::int32_t(positions);
  params.splits = std::int32_t(choice.splits);
  params.partial = split;
  params.row_stride = split ? out_channels : request.filter[0];
  params.column_stride = split ? 1 : request.filter[1];
  params.group_stride = in_channels * params.row_stride;
  // Where neighbouring output channels are far apart in the result, taps are near: they leave side by side.
  const std::int64_t pitch = (std::int64_t(plan.taps) * choice.octets * kOctet) | 1;
  const bool fits = pitch * work.config.channels * work.bytes() <= params.shared.positions;
  params.staged_pitch = !split && params.column_stride != 1 && fits ? std::int32_t(pitch) : 0;
  params.split_stride = problem.taps() * problem.in_channels * out_channels;
  params.by_tap_blocks = FastDivisor(params.tap_blocks);
  params.by_channel_blocks = FastDivisor(params.channel_blocks);
  params.by_row_blocks = FastDivisor(params.row_blocks);
  params.by_conv_groups = FastDivisor(params.conv_groups);
  params.by_octets = FastDivisor(params.block_octets);

  const double grid = tiles_of(work, choice) * double(choice.splits);
  if (grid > kUnlimited) return "more than 2**31 thread blocks";
  plan.grid = std::int64_t(grid);
  plan.lay_out(request, split ? choice.splits : 0);
  return plan;
}

// Both tensors' channels side by side, and in whole vectors of one of them at least; or both tensors' pixels.
Innermost innermost_of(const Request& request, int vector) {
  const Problem& problem = request.problem;
  const std::int64_t inputs = problem.group_in_channels(), outputs = problem.group_out_channels();
  const auto beside = [](const Strides& strides, std::int64_t channels) { return strides[1] == 1 || channels == 1; };
  const bool channels =
      beside(request.input, problem.in_channels) && beside(request.output, problem.out_channels) &&
      (whole_vectors(request.input, inputs, vector) || whole_vectors(request.output, outputs, vector));
  return channels ? Innermost::channels : Innermost::pixels;
}

std::variant<OuterPlan, std::string> plan_as_it_lies(const Request& request, const DeviceTraits& device,
                                                     const OuterConfig& config, Operand operand) {
  const OuterWork work{request, device, config, operand, innermost_of(request, operand_vector(operand))};
  // Taps that reach far, and strides as large, have a patch of their own and boxes of fewer positions.
  for (const std::int64_t most_taps : {kUnlimited, std::int64_t(1)}) {
    for (std::int32_t positions = config.pixels(operand); positions >= 1; positions /= 2) {
      if (const auto best = best_of(work, most_taps, positions)) return build(work, *best);
      if (most_taps > 1) break;
    }
  }
  return "needs more shared memory than this GPU gives a thread block";
}

TurnShape turn_shape(const Strides& strides, const Problem& problem, bool of_output) {
  const std::int64_t channels = of_output ? problem.out_channels : problem.in_channels;
  TurnShape turn{strides, problem.batch, 1, channels, channels};
  for (int axis = 0; axis < kAxes; ++axis) {
    turn.extents[axis] = of_output ? problem.axes[axis].output() : problem.axes[axis].input;
  }
  return turn;
}

// With both tensors' channels innermost, in whole vectors, turned where they lie otherwise. Elements of 16 bits, which rows of pixels
// without a vector's alignment take through registers.
std::optional<OuterPlan> plan_turned(const Request& request, const DeviceTraits& device, const OuterConfig& config,
                                     Operand operand) {
  const Problem& problem = request.problem;
  const int vector = operand_vector(operand);
  if (operand_bytes(operand) != 2 || problem.group_in_channels() % vector != 0 ||
      problem.group_out_channels() % vector != 0) {
    return std::nullopt;
  }
  Request turned = request;
  std::vector<std::pair<std::optional<OuterPlan::Turning> OuterPlan::*, TurnShape>> turns;
  for (const bool of_output : {false, true}) {
    Strides& strides = of_output ? turned.output : turned.input;
    const TurnShape turn = turn_shape(strides, problem, of_output);
    if (whole_vectors(strides, turn.channels, vector)) continue;
    if (!can_turn(turn)) return std::nullopt;
    strides = turned_strides(turn);
    turns.emplace_back(of_output ? &OuterPlan::patch : &OuterPlan::input, turn);
  }
  if (turns.empty()) return std::nullopt;
  auto planned = plan_as_it_lies(turned, device, config, operand);
  OuterPlan* const plan = std::get_if<OuterPlan>(&planned);
  if (plan == nullptr) return std::nullopt;
  for (const auto& [place, turn] : turns) {
    const OuterPlan::Turning turning{plan_turning(turn, operand), round_up(plan->workspace_bytes, 256)};
    plan->*place = turning;
    plan->workspace_bytes = turning.offset + turned_bytes(turning.params, operand);
    plan->cost.turning += turning_time(turn, operand, device);
  }
  plan->cost.total += plan->cost.turning;
  return std::move(*plan);
}

}  // namespace

std::variant<OuterPlan, std::string> plan_outer(const Request& request, const DeviceTraits& device,
                                                const OuterConfig& config) {
  if (const std::string reason = gemm_refusal(request); !reason.empty()) return reason;
  const Operand operand = operand_of(request.dtype, request.precision);
  if (!config.has(operand)) return kTruncates;
  if (device.capability != 90) return kHoppers;
  auto plan = plan_as_it_lies(request, device, config, operand);
  if (device.tensor_copies == 0) return plan;
  auto turned = plan_turned(request, device, config, operand);
  const OuterPlan* const other = std::get_if<OuterPlan>(&plan);
  const bool pays = other == nullptr || (turned && turned->cost.total < other->cost.total);
  if (turned && (pays || device.tensor_copies > 1)) return std::move(*turned);
  return plan;
}

OuterLaunch bind(const OuterPlan& plan, const Pointers& pointers) {
  OuterLaunch launch{plan.params, {}};
  OuterParams& params = launch.outer;
  char* workspace = static_cast<char*>(pointers.workspace);
  const auto lying = [&](const void* source, const std::optional<OuterPlan::Turning>& turning) {
    if (!turning) return source;
    void* const target = workspace + turning->offset;
    place_turning(launch.turns.emplace_back(turning->params), source, target);
    return static_cast<const void*>(target);
  };
  params.input = lying(pointers.input, plan.input);
  params.patch = lying(pointers.output, plan.patch);
  params.result = params.partial ? static_cast<void*>(workspace + plan.partial_offset) : pointers.filter;
  params.tables = plan.carried() ? nullptr : workspace;
  // The plan counts on torch's alignment; views may have less.
  const auto misses = [&](const void* data, std::int32_t piece) {
    const int bytes = plan.inner == Innermost::channels ? 16 : piece * operand_bytes(plan.operand);
    return reinterpret_cast<std::uintptr_t>(data) % bytes != 0;
  };
  if (misses(params.input, params.input_piece) || misses(params.patch, params.patch_piece)) {
    params.input_piece = params.patch_piece = 1;
    params.input_entries = plan.config.pixels(plan.operand);
    params.patch_entries = params.patch_pixels;
    params.stages = 2;
    params.shared = shared_of(plan.config, plan.operand, params.shared.patch_stage_bytes, params.stages,
                              params.input_entries + params.patch_entries);
    if (params.staged_pitch * plan.config.channels * operand_bytes(plan.operand) > params.shared.positions) {
      params.staged_pitch = 0;
    }
    params.input_by_registers = params.patch_by_registers =
        plan.inner == Innermost::channels || operand_bytes(plan.operand) < 4;
  }
  return launch;
}

}  // namespace convt
