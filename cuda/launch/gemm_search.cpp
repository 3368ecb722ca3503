#include "launch/gemm_search.hpp"

#include <algorithm>
#include <numeric>

namespace convt {

RowOrder order_of(const GemmWork& work) {
  RowOrder order;
  if (!work.by_rows) return order;
  order.phases = std::int32_t(work.shape.axes[2].stride);
  order.units = kMmaRows / order.phases;
  order.by_units = FastDivisor(order.units);
  order.by_phases = FastDivisor(order.phases);
  return order;
}

std::int32_t rows_of(const GemmWork& work) {
  const RowOrder order = order_of(work);
  return work.config.rows / kMmaRows * order.units * order.phases;
}

QGrid grid_of(const GemmShape& shape, const Origins& origin, int axis) {
  if (shape.op == Operator::grad_input || has_together(shape)) {
    return {0, ceil_div(shape.axes[axis].output, shape.axes[axis].stride)};
  }
  return q_grid(shape.problem.axes[axis], origin[axis]);
}

Positions positions_of(const GemmShape& shape, const Origins& origin) {
  Positions q = {shape.problem.batch};
  for (int axis = 0; axis < kAxes; ++axis) q[1 + axis] = grid_of(shape, origin, axis).count;
  return q;
}

bool can_split(const GemmWork& work, const Launch& launch, std::size_t spans) {
  const double blocks = launch.tiles * launch.each();
  return launch.splits <= work.chunks() * double(spans) &&
         blocks * work.config.rows * work.config.pixels * 4 <= kMaxPartialBytes &&
         blocks <= 2.0 * work.device.multiprocessors * work.blocks;
}

// Without output phases there is nothing to choose.
std::vector<Origins> origins_of(const GemmShape& shape) {
  const Problem& problem = shape.problem;
  if (has_together(shape)) return {{Origin::aligned, Origin::aligned, Origin::aligned}};
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

namespace {

// Equal shares of the channels, as they are and in eights, down to one.
std::vector<std::int32_t> equal_shares(std::int64_t channels, std::int32_t rows) {
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

}  // namespace

std::int32_t even_positions(const GemmWork& work) {
  const std::int64_t least = work.way == WayIn::rows ? operand_vector(work.operand) : 2;   // powers of two
  if (!work.by_rows) return std::int32_t(least);
  const std::int32_t bytes = operand_bytes(work.operand);
  const std::int64_t elements = aligned_bytes(work.shape, bytes) / bytes;
  return std::int32_t(std::max<std::int64_t>(least, elements / std::gcd(elements, work.shape.axes[2].stride)));
}

std::vector<std::int32_t> channel_blocks(const GemmWork& work) {
  const GemmShape& shape = work.shape;
  const std::int32_t rows = rows_of(work);
  std::vector<std::int32_t> made = equal_shares(shape.out_channels, rows);
  // Rows of the output leave whole unless their phases alone exceed the tile: cut W phases make scalar stores.
  const std::int64_t wide = shape.reached_phases(2);
  // Pixels leave phase by phase anyhow, and boxes come for little: phases that share no taps need not share products either.
  const std::int64_t most =
      work.by_pixels && in_lines(work.way) ? rows : std::max<std::int64_t>(rows / wide, work.by_pixels ? 8 : 1);
  std::erase_if(made, [&](std::int32_t channels) { return channels > most; });
  // Stored along channels, a block that ends within 16 bytes would make scalar stores.
  const int vector = operand_vector(work.operand);
  const auto is_cut = [&](std::int32_t channels) { return channels % vector != 0; };
  const bool along = shape.stores_along_channels() && shape.out_channels % vector == 0;
  if (work.by_pixels || (along && std::any_of(made.begin(), made.end(), [&](std::int32_t channels) {
                           return !is_cut(channels) && channels * wide <= rows;
                         }))) {
    std::erase_if(made, is_cut);
  }
  return made;
}

const std::vector<BlockShifts>& GemmSearch::blocks_of(const Origins& origin, std::int32_t rows, std::int32_t channels,
                                                      WayIn way) {
  const auto [entry, is_new] = blocks_.try_emplace({origin, rows, channels, way});
  if (is_new) entry->second = block_shifts(shape_, origin, rows, channels, way);
  return entry->second;
}

const GemmSearch::Tilings& GemmSearch::tilings_of(const GemmWork& work, const Origins& origin,
                                                  const std::vector<BlockShifts>& blocks) {
  const int pixels = work.config.pixels;
  std::optional<Packing> packing;
  if (work.config.grouped())
    packing = packing_of(shape_, blocks, even_positions(work), work.way, operand_vector(work.operand));
  const auto [entry, is_new] = tilings_.try_emplace({origin, pixels, packing});
  Tilings& made = entry->second;
  if (!is_new) return made;
  const auto q = positions_of(shape_, origin);
  for (const TileBox& box : packing ? packed_boxes(pixels, q, *packing) : boxes(pixels, q)) {
    double count = 1;
    for (int axis = 0; axis < kTileAxes; ++axis) count *= double(ceil_div(q[axis], box.tile[axis]));
    made.push_back({box, count, std::int32_t(made.size())});
  }
  std::stable_sort(made.begin(), made.end(), [](const Tiling& a, const Tiling& b) { return a.count < b.count; });
  return made;
}

void GemmSearch::search(const GemmWork& work, const Origins& origin, std::int32_t channels,
                        std::optional<GemmChoice>& best) {
  const std::vector<BlockShifts>& blocks = blocks_of(origin, rows_of(work), channels, work.way);
  const Tilings& tilings = tilings_of(work, origin, blocks);
  const TileFloor floor(work, blocks, channels);
  const double groups = double(shape_.problem.groups * ceil_div(shape_.out_channels, channels));
  const auto q = positions_of(shape_, origin);
  const auto wins = [&](const Tiling& tiling) { return !best || floor.time(q, tiling.count) < best->cost.total; };
  const auto end = std::partition_point(tilings.begin(), tilings.end(), wins);
  for (auto at = tilings.begin(); at != end; ++at) {
    Launch launch{at->count * groups, double(blocks.size()), 1};
    std::optional<TileWork> tile;   // cutting shifts into groups takes time: not for what loses anyway
    for (; launch.splits <= (work.config.grouped() ? 1 : 64); launch.splits *= 2) {
      if (launch.splits > 1 && !can_split(work, launch, blocks[0].spans.size())) break;
      if (best && floor.time(at->box, launch) >= best->cost.total) continue;
      if (!tile) tile = work_of_tile(work, blocks, at->box, channels);
      if (!tile) break;
      const GemmCost cost = cost_of(work, *tile, launch);
      const bool is_first = best && best->blocks == &blocks && at->place < best->place;
      if (!best || cost.total < best->cost.total || (cost.total == best->cost.total && is_first)) {
        best = GemmChoice{origin, channels, launch.splits, at->box, at->place, &blocks, cost};
      }
    }
  }
}

GemmSearch& GemmSearch::together(int axis, std::int64_t outputs) {
  auto& made = together_[{axis, outputs}];
  if (!made) made.reset(new GemmSearch(convt::together(shape_, axis, outputs)));
  return *made;
}

std::optional<GemmChoice> GemmSearch::best(const GemmWork& work) {
  std::optional<GemmChoice> best;
  for (const Origins& origin : origins_of(shape_)) {
    for (std::int32_t channels : channel_blocks(work)) search(work, origin, channels, best);
  }
  return best;
}

}  // namespace convt
