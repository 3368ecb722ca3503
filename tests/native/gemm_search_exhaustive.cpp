// Costs every candidate of every configuration for some problems, and compares: the search's choice, and the floors it relies on.
#include <cstdio>
#include <limits>

#include "launch/gemm_search.hpp"
#include "launch/turn_plan.hpp"

using namespace convt;

namespace {

long candidates = 0, dropped = 0, wrong = 0;

void complain(const char* what, const GemmWork& work, double told, double exact) {
  ++wrong;
  std::printf("%s: %s %s, %.17g against %.17g\n", name_of(work.shape.op), name_of(work.config).c_str(), what, told,
              exact);
}

std::vector<TileBox> boxes_of(const GemmWork& work, const Positions& q, const std::vector<BlockShifts>& blocks) {
  const int pixels = work.config.pixels;
  if (!work.config.grouped()) return boxes(pixels, q);
  return packed_boxes(pixels, q,
                      packing_of(work.shape, blocks, even_positions(work), work.way, operand_vector(work.operand)));
}

void compare(const GemmWork& work, GemmSearch& search) {
  std::optional<GemmChoice> first;
  const std::optional<GemmChoice> found = search.best(work);
  for (const Origins& origin : origins_of(work.shape)) {
    const Positions q = positions_of(work.shape, origin);
    for (const std::int32_t channels : channel_blocks(work)) {
      const auto blocks = block_shifts(work.shape, origin, rows_of(work), channels, work.way);
      const TileFloor floor(work, blocks, channels);
      for (const TileBox& box : boxes_of(work, q, blocks)) {
        double count = 1;
        for (int axis = 0; axis < kTileAxes; ++axis) count *= double(ceil_div(q[axis], box.tile[axis]));
        const double groups = double(work.shape.problem.groups * ceil_div(work.shape.out_channels, channels));
        const auto tile = work_of_tile(work, blocks, box, channels);
        for (std::int32_t splits = 1; tile && splits <= (work.config.grouped() ? 1 : 64); splits *= 2) {
          const Launch launch{groups * count, double(blocks.size()), splits};
          if (splits > 1 && !can_split(work, launch, blocks[0].spans.size())) break;
          const GemmCost cost = cost_of(work, *tile, launch);
          if (!first || cost.total < first->cost.total)
            first = GemmChoice{origin, channels, splits, box, 0, nullptr, cost};
          const double of_box = floor.time(box, launch), of_count = floor.time(q, count);
          if (of_box > cost.total) complain("floor of a box", work, of_box, cost.total);
          for (const double share : {1.0, 0.7, 0.3, 0.1}) {
            const double of_fewer = floor.time(q, count * share);
            if (of_fewer > cost.total) complain("floor of so many boxes", work, of_fewer, cost.total);
          }
          ++candidates;
          dropped += found && std::max(of_box, of_count) >= found->cost.total;
        }
      }
    }
  }
  if (bool(first) != bool(found)) return complain("a choice or none", work, bool(found), bool(first));
  if (!first) return;
  const bool same = first->origin == found->origin && first->block_channels == found->block_channels &&
                    first->splits == found->splits &&
                    std::equal(first->box.tile, first->box.tile + kTileAxes, found->box.tile) &&
                    std::equal(first->box.runs, first->box.runs + kTileAxes, found->box.runs);
  if (!same || first->cost.total != found->cost.total) complain("choice", work, found->cost.total, first->cost.total);
}

Strides dense(const std::array<std::int64_t, 2 + kAxes>& sizes, bool channels_last) {
  Strides strides{};
  std::int64_t step = 1;
  for (const int axis : channels_last ? std::array{1, 4, 3, 2, 0} : std::array{4, 3, 2, 1, 0}) {
    strides[axis] = step;
    step *= sizes[axis];
  }
  return strides;
}

}  // namespace

int main() {
  // Of axes: input, filter, stride, padding, output padding, dilation.
  const Problem problems[] = {
      {8, 32, 48, 1, {{{}, {12, 4, 2, 1, 0, 1}, {20, 4, 2, 1, 0, 1}}}},
      {2, 16, 16, 1, {{{5, 3, 2, 1, 1, 1}, {6, 3, 2, 1, 1, 1}, {9, 3, 2, 1, 1, 1}}}},
      {3, 24, 20, 2, {{{}, {}, {333, 7, 3, 2, 0, 1}}}},
      {1, 8, 64, 1, {{{}, {17, 3, 1, 0, 0, 2}, {31, 3, 1, 2, 0, 5}}}},
      {1, 16, 8, 1, {{{}, {19, 21, 1, 10, 0, 1}, {40, 33, 8, 3, 0, 1}}}},  // patches that must be cut
      {64, 64, 3, 1, {{{}, {}, {}}}},
      {1, 512, 32, 1, {{{}, {4, 4, 2, 1, 0, 1}, {4, 4, 2, 1, 0, 1}}}},
      {4, 128, 128, 1, {{{}, {124, 2, 2, 0, 0, 1}, {108, 2, 2, 0, 0, 1}}}},  // boxes of equal times
  };
  DeviceTraits small;
  small.shared_per_block = 99 * 1024;
  small.shared_per_multiprocessor = 100 * 1024;
  for (const Problem& problem : problems) {
    for (const bool channels_last : {false, true}) {
      Request request;
      request.problem = problem;
      const auto& [d, h, w] = problem.axes;
      request.input = dense({problem.batch, problem.in_channels, d.input, h.input, w.input}, channels_last);
      request.output = dense({problem.batch, problem.out_channels, d.output(), h.output(), w.output()}, channels_last);
      for (const Operator op : {Operator::forward, Operator::grad_input}) {
        request.op = op;
        GemmSearch search(request);
        for (const TileConfig& config : gemm_configs()) {
          for (const Operand operand : {Operand::tf32, Operand::ieee, Operand::bfloat16}) {
            for (const DeviceTraits& device : {DeviceTraits{}, small}) {
              const int fitting = config.has(operand) ? blocks_that_fit(config, operand, device) : 0;
              if (fitting == 0) continue;
              for (const WayIn way : {WayIn::gathered, WayIn::boxes, WayIn::turned, WayIn::rows}) {
                if (!comes(way, search.shape(), config, operand)) continue;
                const bool turned = way == WayIn::turned;
                const GemmShape read = turned ? turned_shape(search.shape(), operand) : search.shape();
                compare(gemm_work(read, device, config, operand, fitting, way), search);
              }
            }
          }
        }
      }
    }
  }
  std::printf("%ld candidates, %ld dropped\n", candidates, dropped);
  return wrong > 0;
}
