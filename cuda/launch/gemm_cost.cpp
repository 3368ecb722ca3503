#include "launch/gemm_cost.hpp"

#include <algorithm>
#include <limits>

namespace convt {

const char* GemmCost::bound() const {
  const double terms[] = {tensor, shared, issue, l2, memory};
  const char* names[] = {"tensor", "shared", "issue", "l2", "memory"};
  return names[std::max_element(terms, terms + 5) - terms];
}

std::int64_t shared_capacity(const DeviceTraits& device, std::int64_t blocks) {
  constexpr std::int64_t reserved = 1024;   // per block, by the driver
  return std::min(device.shared_per_block, device.shared_per_multiprocessor / blocks - reserved);
}

double tensor_bytes(const Problem& problem, double element_bytes) {
  return double(problem.batch * problem.out_channels * problem.output_pixels()) * element_bytes +
         double(problem.batch * problem.in_channels * problem.input_pixels()) * element_bytes +
         double(problem.in_channels * problem.group_out_channels() * problem.taps()) * element_bytes;
}

double overlapped(const GemmCost& cost, int norm) {
  double power = 0;
  for (double term : {cost.tensor, cost.shared, cost.issue, cost.l2, cost.memory}) {
    for (int of = 2; of <= norm; of *= 2) term *= term;
    power += term;
  }
  for (int of = 2; of <= norm; of *= 2) power = std::sqrt(power);
  return power;
}

std::int64_t pixel_capacity(const TileConfig& config, Operand operand, const DeviceTraits& device, std::int64_t blocks,
                            bool interleaved, WayIn way) {
  const std::int64_t even = in_lines(way) ? kBoxAlignment : 1;
  const std::int64_t left = shared_capacity(device, blocks) -
                            round_up(config.filter_stages * config.slab_bytes(operand), even) -
                            config.lasting_bytes(way);
  const std::int64_t pixel = config.planes * 16, rows = way == WayIn::rows ? kRowStages * 16 : 0;
  const std::int64_t pixels = left / (kPatchStages * pixel + rows + (interleaved ? 8 : 4));
  return in_lines(way) ? pixels / (even / pixel) * (even / pixel) : pixels;
}

namespace {

// Steps, extents and strides that tensor copies know.
bool is_copied(const GemmShape& shape, Operand operand) {
  constexpr std::int64_t farthest = std::int64_t(1) << 39;   // bytes
  bool copied = shape.problem.batch == 1 || shape.input[0] > 0;
  for (int axis = 0; axis < kAxes; ++axis) {
    const GemmShape::Along& along = shape.axes[axis];
    copied = copied && along.step <= kMostBoxStep && (along.input == 1 || shape.input[2 + axis] > 0) &&
             along.input <= std::numeric_limits<std::int32_t>::max();
  }
  for (const std::int64_t stride : shape.input) copied = copied && stride * operand_bytes(operand) < farthest;
  return copied;
}

// Whether all rows along W begin at multiples of 16 bytes, and none of their pixels is skipped.
bool whole_rows(const GemmShape& shape, int vector) {
  const std::int64_t extents[] = {shape.problem.batch, shape.in_channels * shape.problem.groups, shape.axes[0].input,
                                  shape.axes[1].input};
  bool whole = shape.input[1] > 0 && shape.input[4] == 1 && shape.axes[2].step == 1;
  for (int axis = 0; axis < int(std::size(extents)); ++axis) {
    whole = whole && (extents[axis] == 1 || shape.input[axis] % vector == 0);
  }
  return whole;
}

}  // namespace

bool comes(WayIn way, const GemmShape& shape, const TileConfig& config, Operand operand) {
  if (way == WayIn::gathered) return true;
  if (!config.has(operand, way)) return false;
  if (way == WayIn::turned) {
    return can_turn(turn_shape(shape, operand)) && is_copied(turned_shape(shape, operand), operand);
  }
  const int vector = operand_vector(operand);
  // Channels beyond the tensor's are 0; those of another group are not.
  const bool own = shape.problem.groups == 1 || shape.in_channels % (config.planes * vector) == 0;
  const bool fits =
      way == WayIn::boxes ? whole_vectors(shape.input, shape.in_channels, vector) : whole_rows(shape, vector);
  return own && fits && is_copied(shape, operand);
}

TurnShape turn_shape(const GemmShape& shape, Operand operand) {
  const std::int64_t pitch = round_up(shape.in_channels, operand_vector(operand));
  TurnShape turn{shape.input, shape.problem.batch, shape.problem.groups, shape.in_channels, pitch};
  for (int axis = 0; axis < kAxes; ++axis) turn.extents[axis] = shape.axes[axis].input;
  return turn;
}

GemmShape turned_shape(const GemmShape& shape, Operand operand) {
  GemmShape turned = shape;
  turned.input = turned_strides(turn_shape(shape, operand));
  return turned;
}

int blocks_that_fit(const TileConfig& config, Operand operand, const DeviceTraits& device) {
  int blocks = config.blocks_of(operand);
  while (blocks > 0 && (config.staging_bytes() + config.lasting_bytes(WayIn::boxes) > shared_capacity(device, blocks) ||
                        pixel_capacity(config, operand, device, blocks, false) < config.pixels)) {
    --blocks;
  }
  return blocks;
}

namespace {

// What the terms weigh in the time that was measured. Those of tf32 and of 16 bits are fitted to launches of all configurations on
// an H200 (docs/tuning.md). Of ieee the terms were never weighed; their sum is 0.35 to 0.7 of what is measured.
struct Weights {
  double tensor, shared, issue, l2, memory, alone, launch;   // launch: microseconds
  int norm;                                                  // 2, 4 or 8
};
constexpr Weights kWarps{2.1, 0.8, 1.05, 1.5, 0.9, 1.95, 26, 2};
constexpr Weights kIeee{2.2, 2.2, 2.2, 2.2, 2.2, 2.2, 13, 4};
// Of warpgroups two sides work at a time: those who multiply and take the sums out, and those who load. Cycles of a tile are what
// each spends between its instructions; the first tile's loads and the last one's way out show.
struct Sides {
  double products, leaving, multiplied_tile, loading, loaded_tile, shared, l2, memory, first, launch;
};
constexpr Sides kWarpgroups{0.68, 1.31, 840, 5.04, 4450, 0.185, 1.81, 0.87, 0.1, 22};
// The same where patches are tensor copies: nobody loads, but float32 is rounded.
constexpr Sides kBoxes{0.85, 1.1, 4080, 1, 507, 0.23, 1.07, 0.5, 0.29, 15.5};
// And where warps of their own store: a third side. Those who multiply hand a tile over, which is what `leaving` counts then.
constexpr Sides kApart{0.87, 1, 2810, 1, 507, 0.23, 1.07, 0.5, 0.15, 15.5};

// Cycles of a tile that is handed over, and of its storing by eight warps; of 16 bits and of float32.
struct Handing {
  double leaving, storing;
};
Handing handing(WayOut way, int bytes, bool even) {
  const bool half = bytes == 2;
  switch (way) {
    case WayOut::pixels:
      return half ? Handing{0, 2540} : Handing{5040, 1730};
    case WayOut::rows:
      return half ? Handing{even ? 4300.0 : 7000.0, 5840} : Handing{even ? 4860.0 : 8890.0, 11000};
    case WayOut::pairs:
      return half ? Handing{0, 1500} : Handing{2160, 3540};
    default:
      return half ? Handing{3390, 510} : Handing{4210, 4120};
  }
}

// Of rows that those who multiply store: by pieces of 16 bytes, or by words wherever a row begins.
double rows_weight(const GemmWork& work) {
  const bool half = operand_bytes(work.operand) == 2, alone = work.way == WayIn::rows && work.config.blocks == 1;
  if (!work.even) return half ? 1 : 1.9;
  return half && alone ? 0.35 : half ? 0.75 : 1;
}

// Bytes through L2 for those that a row of a patch has. Rows that start anywhere take a sector more than they fill; pixels of one
// phase among several lie apart.
double row_waste(const GemmWork& work, const PatchSpan& span, double tile_w) {
  if (work.shape.gathers_along_channels()) return 1;
  const double bytes = operand_bytes(work.operand), columns = tile_w + span.high[2] - span.low[2];
  const double useful = columns * span.w_phases * bytes;
  const double touched = std::min(columns * double(work.shape.axes[2].step) * bytes, columns * span.w_phases * 32);
  return (std::max(touched, useful) + 24) / useful;
}

bool reaches_all_phases(const GemmShape& shape) {
  bool reached = true;
  for (int axis = 0; axis < kAxes; ++axis) reached = reached && shape.reached_phases(axis) == shape.axes[axis].stride;
  return reached;
}

}  // namespace

bool leaves_by_pixels(const GemmShape& shape, const TileConfig& config) {
  return config.grouped() && shape.stores_along_channels() && reaches_all_phases(shape);
}

bool leaves_by_rows(const GemmShape& shape, const TileConfig& config) {
  const bool phases = shape.axes[0].stride * shape.axes[1].stride * shape.axes[2].stride > 1;
  return config.grouped() && phases && shape.output[4] == 1 && shape.axes[2].stride <= kMmaRows &&
         reaches_all_phases(shape);
}

GemmWork gemm_work(const GemmShape& shape, const DeviceTraits& device, const TileConfig& config, Operand operand,
                   int blocks, WayIn way) {
  const int bytes = operand_bytes(operand);
  const bool interleaved = shape.axes[2].step > 1 && way == WayIn::gathered;
  return {shape,
          device,
          config,
          operand,
          blocks,
          pixel_capacity(config, operand, device, blocks, interleaved, way),
          tensor_bytes(shape.problem, bytes),
          leaves_by_pixels(shape, config),
          leaves_by_rows(shape, config),
          aligned_bytes(shape, bytes) == 16,
          way};
}

std::int32_t aligned_bytes(const GemmShape& shape, std::int32_t element_bytes) {
  const int inner = shape.stores_along_channels() ? 1 : 4;
  std::int64_t places = 16;
  for (int axis = 0; axis < int(shape.output.size()); ++axis) {
    if (axis != inner) places |= shape.output[axis] * element_bytes;
  }
  if (inner == 1 && shape.problem.groups > 1) places |= shape.out_channels * element_bytes;
  return std::int32_t(places & -places);
}

namespace {

// Of tiles that are not staged; pairs leave as singles do.
WayOut own_way(const GemmWork& work, std::int32_t block_channels) {
  if (work.by_pixels && block_channels % operand_vector(work.operand) == 0) return WayOut::pixels;
  return work.by_rows ? WayOut::rows : WayOut::singles;
}

}  // namespace

WayOut way_out(const GemmWork& work, const TileBox& box, std::int32_t block_channels) {
  const GemmShape& shape = work.shape;
  std::int64_t reach = (box.tile[0] - 1) * shape.output[0];
  bool even = true, phases = false;
  for (int axis = 0; axis < kAxes; ++axis) {
    const GemmShape::Along& along = shape.axes[axis];
    phases = phases || along.stride != 1;
    reach += box.tile[1 + axis] * along.stride * shape.output[2 + axis];
    even = even && (axis == kAxes - 1 || shape.output[2 + axis] % 2 == 0 || along.output == 1);
  }
  if (reach * 4 > std::numeric_limits<std::int32_t>::max()) return WayOut::staged;
  if (const WayOut own = own_way(work, block_channels); own != WayOut::singles) return own;
  // Every tile begins where a pair may. Rows of packed tiles do as well; elsewhere pairs would straddle rows of odd tiles.
  const bool even_tile = box.tile[3] % 2 == 0, pairs = even_tile || box.tile[3] >= shape.axes[2].output;
  if (phases || shape.output[4] != 1 || (!even_tile && !box.packed)) return WayOut::staged;
  return pairs && even && shape.output[0] % 2 == 0 && shape.output[1] % 2 == 0 ? WayOut::pairs : WayOut::singles;
}

namespace {

// What the work of a tile depends on, of its box.
struct TileExtent {
  double positions, row;   // along W
  WayOut way;
};
// A phase block's patches.
struct Patches {
  double pixels;
  double rounds;           // of all threads, to load them
  double conflicts;        // of this block and those before
};

// What warps do to patches between their copies and the products. A team turns half the planes, of channels that are not there as well.
double working_on(const GemmWork& work, double patches, double pixels, double units) {
  const bool alone = work.config.blocks == 1;   // six warps, else two, of each thread block
  if (work.patch_work() == PatchWork::round) return units * 16 * (alone ? 0.14 : 0.2);
  if (work.patch_work() == PatchWork::none) return 0;
  constexpr double visit = 530, byte = 0.24;   // cycles: of a plane, and of a byte of a warp
  const double planes = work.chunks() * work.config.planes / 2;
  return 4.0 / work.config.blocks * planes * (patches * visit + pixels * 16 * byte / (alone ? 3 : 1));
}

// docs/kernels.md explains every term. Cycles are a multiprocessor's.
template <class PatchesOf>
std::optional<TileWork> work_of(const GemmWork& work, const std::vector<BlockShifts>& blocks, const TileExtent& tile,
                                std::int32_t block_channels, const PatchesOf& patches_of) {
  const GemmShape& shape = work.shape;
  const TileConfig& config = work.config;
  const int vector = operand_vector(work.operand), bytes = operand_bytes(work.operand);
  const double mma_steps = work.mma_steps(), chunks = work.chunks();
  const double vectors = std::ceil(double(shape.in_channels) / vector);
  const bool grouped = config.grouped(), ieee = work.operand == Operand::ieee;

  double mma = 0, shared = 0, issue = 0, l2 = 0, steps = 0, loading = 0, leaving = 0, storing = 0;
  const double filter_loads = config.warp_rows() / kMmaRows * filter_copies(work.operand);
  const double patch_loads = config.warp_pixels() / 16.0;
  const double loads = shape.gathers_along_channels() ? 1 : vector;    // instructions per 16 bytes
  for (const BlockShifts& block : blocks) {
    const std::optional<Patches> patches = patches_of(block);
    if (!patches) return std::nullopt;
    const auto& [pixels, rounds, conflicts] = *patches;
    const double units = block.shifts.empty() ? 0 : pixels * vectors;
    const double outputs = tile.positions * block.block.outer_count * block.block.w_count *
                           std::min<std::int64_t>(block_channels, shape.out_channels);
    const double own = double(block.shifts.size());
    mma += (grouped ? own * config.row_tiles() : double(block.row_tiles)) * (config.pixels / kMmaPixels) * mma_steps;
    // A warp's load visits every row of pixels that it covers.
    double row_pixels = tile.row, input_waste = 1;
    if (!block.spans.empty()) {
      const PatchSpan& span = block.spans[0];
      row_pixels = (tile.row + span.high[2] - span.low[2]) * span.w_phases;
      input_waste = row_waste(work, span, tile.row);
    }
    const double lines = units * loads / 32 * (1 + 32 / row_pixels);
    const double operands = grouped ? 96 : config.warps() * 4 * (filter_loads + patch_loads * conflicts);
    shared += own * mma_steps * operands + own * chunks * config.slab_bytes(work.operand) / 128.0 + units / 8 + lines +
              3.0 * config.rows * config.pixels / 32 + outputs / 32;
    // Warp instructions, counted in the compiled code.
    const double batches = block.shifts.empty() ? 0 : rounds * config.planes * vector / 16 * chunks;
    const double rows = outputs / (tile.row * block.block.w_count);
    const bool whole = block.block.w_count == shape.axes[2].stride || shape.output[1] == 1;
    const double pieces = outputs * bytes / 16 + rows * (shape.output[1] == 1 ? 0 : 4);
    const double sums = config.warp_rows() * config.warp_pixels() / 32.0;
    const double staged = pieces / 32 * (whole ? 40 : 120) + config.warps() * 400.0;
    if (work.stores_apart(tile.way)) {
      const Handing apart = handing(tile.way, bytes, work.even);
      leaving += 4 * apart.leaving;
      storing +=
          4 * apart.storing * (work.patch_work() == PatchWork::none ? 1 : 2);   // else half of them have other work
    } else {
      leaving += tile.way == WayOut::staged   ? (!grouped     ? 1
                                                 : bytes == 2 ? 6.7
                                                              : 3.1) *
                                                    staged   // while loaders wait
                 : tile.way == WayOut::pixels ? config.warps() * (bytes == 2 ? 140 + 3.5 * sums : 370 + 16.7 * sums)
                 : tile.way == WayOut::rows
                     ? config.warps() * (bytes == 2 ? 470 + 23.6 * sums : 230 + 18 * sums) * rows_weight(work)
                     : config.warps() * (240 + (tile.way == WayOut::pairs ? 2 : 4) * sums);
    }
    loading += in_lines(work.way) ? working_on(work, double(block.spans.size()), pixels, units)
                                  : batches * config.warps() * (60 + (loads > 1 ? 70 : 0));
    issue += own * mma_steps * config.warps() * (filter_loads + patch_loads * (ieee ? 9 : 1) + 8) +
             own * chunks * config.warps() * 45;
    const double output_row = tile.row * block.block.w_count * bytes;
    const double output_waste = shape.output[1] == 1 ? 1 : 1 + 48 / output_row;
    l2 += units * 16 * input_waste + own * chunks * config.slab_bytes(work.operand) + outputs * bytes * output_waste;
    steps += own * chunks;
  }
  const double aside = loading + leaving + double(blocks.size()) * config.warps() * 600.0;
  issue += mma * (ieee ? 7 : 1) + aside;
  return TileWork{mma, shared, issue, l2, steps, loading, leaving, aside, storing};
}

constexpr double kRounding = 1 - 1e-9;   // of sums in another order

constexpr double TileWork::* kParts[] = {&TileWork::mma,     &TileWork::shared, &TileWork::issue,
                                         &TileWork::l2,      &TileWork::steps,  &TileWork::loading,
                                         &TileWork::leaving, &TileWork::aside,  &TileWork::storing};

// work + by * more, part by part.
TileWork sum(TileWork work, double by, const TileWork& more) {
  for (double TileWork::* const part : kParts) work.*part += by * more.*part;
  return work;
}

}  // namespace

std::optional<TileWork> work_of_tile(const GemmWork& work, const std::vector<BlockShifts>& blocks, const TileBox& box,
                                     std::int32_t block_channels) {
  const TileExtent tile{double(box.positions()), double(box.tile[3]), way_out(work, box, block_channels)};
  double conflicts = 1;
  const auto patches_of = [&](const BlockShifts& block) -> std::optional<Patches> {
    if (block.shifts.empty()) return Patches{1, 0, conflicts};
    const auto totals = patch_totals(work.shape, block, box, work.limits());
    if (!totals) return std::nullopt;
    conflicts = std::max(conflicts, totals->conflicts);
    return Patches{double(totals->pixels), std::ceil(double(totals->pixels) / work.config.threads()), conflicts};
  };
  return work_of(work, blocks, tile, block_channels, patches_of);
}

namespace {

// `per_sm`: thread blocks that a multiprocessor gets; `first`: the work of the first tile, that nothing hides.
GemmCost cost_in(const GemmWork& work, const TileWork& tile, const TileWork& first, const Launch& launch,
                 double per_sm) {
  const GemmShape& shape = work.shape;
  const DeviceTraits& device = work.device;
  const TileConfig& config = work.config;
  const bool grouped = config.grouped(), ieee = work.operand == Operand::ieee;
  // Of a quarter multiprocessor, one mma.sync, or as much of a wgmma.
  const double mma_cycles = grouped ? 4.6 : device.capability >= 90 ? 6.3 : 8.0;
  constexpr double l2_bytes_per_cycle = 40;
  const double cycle = 1e-3 / device.product_clock_ghz, each = launch.each();
  const double share = per_sm / each * cycle;
  const double partial = launch.splits > 1 ? launch.tiles * each * config.rows * config.pixels * 4 : 0;
  GemmCost cost;
  // Two warps along rows read every patch fragment twice: 6 % on problem 69, nothing on 64 (H200).
  cost.tensor = tile.mma * (ieee ? 3 : 1) * mma_cycles / 4 * share * (config.warps_m > 1 ? 1.06 : 1);
  cost.shared = tile.shared * share;
  cost.issue = tile.issue / 4 * share;
  cost.l2 = tile.l2 / l2_bytes_per_cycle * share;
  cost.bytes = tile.l2 * launch.tiles + 2 * partial;
  cost.memory = (work.bytes + 2 * partial) / device.memory_gbs * 1e-3;
  const double resident = std::min<double>(work.blocks, per_sm);
  if (grouped) {
    const bool apart = work.stores_apart(work.by_rows ? WayOut::rows : WayOut::pairs);
    const Sides& sides = !in_lines(work.way) ? kWarpgroups : apart ? kApart : kBoxes;
    const auto in = [&](const TileWork& of) { return sides.loading * of.loading / 4 * share; };
    const auto out = [&](const TileWork& of) { return sides.leaving * of.leaving / 4 * share; };
    const double visit = per_sm / resident * cycle;
    cost.tensor = sides.products * cost.tensor + out(tile) + sides.multiplied_tile * visit;
    cost.issue = std::hypot(in(tile) + sides.loaded_tile * visit, tile.storing / 4 * share);
    cost.shared *= sides.shared;
    cost.l2 *= sides.l2;
    cost.memory *= sides.memory;
    cost.total = overlapped(cost, 2) + sides.first * (in(first) + out(first)) / per_sm + sides.launch;
    return cost;
  }
  // What a thread block waits for alone: first patch and filter, barriers, the way out. Neighbours hide their share of it.
  const double latency = per_sm * (2500 + tile.steps / each * 90) / resident * cycle;
  const Weights& weights = ieee ? kIeee : kWarps;
  cost.tensor *= weights.tensor;
  cost.shared *= weights.shared;
  cost.issue *= weights.issue;
  cost.l2 *= weights.l2;
  cost.memory *= weights.memory;
  // Prologue and epilogue do not overlap with their own thread block's products.
  const double alone = (tile.aside / 4 * share + latency) * weights.alone;
  const double seen = shape.op == Operator::forward || ieee ? 1.0 : 1.15;
  // Splits wait for each other, and the last one reads what all have written.
  cost.total = (overlapped(cost, weights.norm) + alone) * seen + weights.launch + 4 * std::log2(launch.splits);
  return cost;
}

// Of a last wave that is but a few thread blocks. Those of warpgroups take tile after tile: one more is all of it.
double forgiven(const GemmWork& work) { return work.config.grouped() ? 0 : 0.15; }

}  // namespace

GemmCost cost_of(const GemmWork& work, const TileWork& tile, const Launch& launch) {
  const double waves = launch.tiles * launch.each() / work.device.multiprocessors;
  return cost_in(work, tile, tile, launch, std::max(1.0, std::ceil(waves - forgiven(work))));
}

TileFloor::TileFloor(const GemmWork& work, const std::vector<BlockShifts>& blocks, std::int32_t block_channels)
    : work(work), phase_blocks(double(blocks.size())), block_channels(block_channels) {
  const auto probe = [&](double positions, double row, WayOut way) {
    const auto patches_of = [&](const BlockShifts& block) -> std::optional<Patches> {
      double phases = 0;
      for (const PatchSpan& span : block.spans) phases += span.w_phases;
      const double pixels = positions * std::max(phases, 1.0);
      return Patches{pixels, pixels / work.config.threads(), 1};
    };
    return *work_of(work, blocks, {positions, row, way}, block_channels, patches_of);
  };
  constexpr double endless = 1e15;
  const auto part_of = [&](WayOut way) {
    const TileWork fixed = probe(0, endless, way), position = probe(1, endless, way), row = probe(1, 1, way);
    return Parts{fixed, sum(position, -1, fixed), sum(row, -1, position)};
  };
  staged = part_of(WayOut::staged);
  const WayOut way = own_way(work, block_channels);
  own = part_of(way == WayOut::singles ? WayOut::pairs : way);
}

TileWork TileFloor::of(const TileBox& box) const {
  const Parts& parts = way_out(work, box, block_channels) == WayOut::staged ? staged : own;
  const double positions = double(box.positions());
  return sum(sum(parts.fixed, positions, parts.position), positions / box.tile[3], parts.row);
}

// More boxes have fewer positions each, but as many together, and pay what a tile costs besides more often. Rows are as long as they
// may be. A wave and what is forgiven of the next compute most for their time, which splits may come to.
double TileFloor::time(const Positions& q, double boxes) const {
  const double groups = double(work.shape.problem.groups * ceil_div(work.shape.out_channels, block_channels));
  const double pixels = double(q[0]) * double(q[1]) * double(q[2]) * double(q[3]) / boxes, tiles = boxes * groups;
  const double waves = tiles * phase_blocks / work.device.multiprocessors;
  const double extra = forgiven(work), per_sm = waves < 1 + extra ? waves / (1 + extra) : waves - extra;
  const double longest = std::min(double(q[3]), double(work.config.pixels));
  const auto time_of = [&](const Parts& parts) {
    TileWork tile = sum(sum(parts.fixed, pixels, parts.position), pixels / longest, parts.row);
    tile.steps = 0;
    return cost_in(work, tile, parts.fixed, {tiles, phase_blocks, 1}, per_sm).total;
  };
  return std::min(time_of(staged), time_of(own)) * kRounding;
}

double TileFloor::time(const TileBox& box, const Launch& launch) const {
  return cost_of(work, of(box), launch).total * kRounding;
}

}  // namespace convt
