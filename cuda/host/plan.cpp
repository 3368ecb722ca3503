#include "host/plan.hpp"

#include <algorithm>
#include <map>

#include "geometry/patch.hpp"

namespace convt::host {
namespace {

using Triple = std::array<std::int64_t, 3>;

constexpr std::int64_t kScratchBytes = 512 << 10;      // a box's patch and accumulators: half of a typical L2
constexpr std::int64_t kMinPositions = 64;             // a box below this spends its time on edges
constexpr std::int64_t kMaxPositions = 2048;          // one plane: a quarter of a typical L1
constexpr std::int64_t kTasksPerThread = 4;            // so that the last task is a small part of the whole
constexpr std::int64_t kChannelsLastRows = 64;         // channels moved at once where they are neighbours in memory
constexpr std::int64_t kStreamingBytes = 8 << 20;      // more than a core's share of the last cache
constexpr std::int64_t kDotBytes = 384 << 10;
constexpr std::int64_t kDotInChannels = 64;
constexpr std::int64_t kDotOutChannels = 32;
constexpr std::int64_t kDotTasks = 32;                 // enough for 16 threads; fixed, so that sums are too
constexpr std::int64_t kPartialBytes = 32 << 20;       // of all slices

// Room for the vector that runs past the last position; an odd number of vectors, so that planes fall into different cache sets.
std::int64_t plane_pitch(std::int64_t positions, std::int64_t lanes) {
  return (ceil_div(positions + lanes, lanes) | 1) * lanes;
}

bool by_channel(const TensorView& tensor) { return tensor.strides[1] == 1 && tensor.strides[4] != 1; }

// Taps of the three axes and where they read, in filter order.
struct TapAt {
  Triple shift, phase;
  std::int64_t filter_offset;
};

std::vector<TapAt> all_taps(const Problem& problem, const std::int64_t (&filter_stride)[3]) {
  std::vector<TapAt> taps;
  taps.reserve(problem.taps());
  Triple k;
  for (k[0] = 0; k[0] < problem.axes[0].filter; ++k[0]) {
    for (k[1] = 0; k[1] < problem.axes[1].filter; ++k[1]) {
      for (k[2] = 0; k[2] < problem.axes[2].filter; ++k[2]) {
        TapAt at{};
        for (int axis = 0; axis < kAxes; ++axis) {
          const Tap tap = tap_of(problem.axes[axis], k[axis], Origin::aligned);
          at.shift[axis] = tap.shift;
          at.phase[axis] = tap.phase;
          at.filter_offset += k[axis] * filter_stride[axis];
        }
        taps.push_back(at);
      }
    }
  }
  return taps;
}

// Numbers the phases that some tap uses, in order of first use.
class PhaseNumbers {
 public:
  std::int64_t operator()(const Triple& phase) {
    const auto [entry, fresh] = numbers_.try_emplace(phase, std::int64_t(residues.size()));
    if (fresh) residues.push_back(phase);
    return entry->second;
  }
  std::vector<Triple> residues;

 private:
  std::map<Triple, std::int64_t> numbers_;
};

// Cuts the grid into boxes of at most `positions` patch pixels, as little halo as that allows.
void choose_boxes(GridArgs& grid, const Triple& halo, std::int64_t positions, std::int64_t lanes) {
  const auto even = [](std::int64_t extent, std::int64_t at_most) {
    return ceil_div(extent, ceil_div(extent, std::clamp<std::int64_t>(at_most, 1, extent)));
  };
  grid.box_images = 1;
  grid.box[2] = grid.extent[2];
  if (grid.box[2] + halo[2] > positions) {
    const std::int64_t at_most = std::max(positions - halo[2], kMinPositions);
    grid.box[2] = std::min(grid.extent[2], round_up(even(grid.extent[2], at_most), lanes));
  }
  const std::int64_t row = grid.box[2] + halo[2];
  // Single rows are always legal; every larger candidate must earn its place.
  double best = 0;
  grid.box[0] = grid.box[1] = 1;
  for (std::int64_t parts = 1; parts <= grid.extent[1]; parts = std::max(parts + 1, parts * 9 / 8)) {
    const std::int64_t h = ceil_div(grid.extent[1], parts);
    const std::int64_t slab = row * (h + halo[1]);
    if (slab * (1 + halo[0]) > positions && h > 1 && parts < grid.extent[1]) continue;
    const std::int64_t d = even(grid.extent[0], positions / slab - halo[0]);
    const double use = double(d * h) / double((d + halo[0]) * (h + halo[1]));
    if (use > best * 1.01) {
      best = use;
      grid.box[0] = d;
      grid.box[1] = h;
    }
  }
  if (grid.box[0] == grid.extent[0] && grid.box[1] == grid.extent[1] && grid.box[2] == grid.extent[2]) {
    const std::int64_t image = row * (grid.box[1] + halo[1]) * (grid.box[0] + halo[0]);
    grid.box_images = even(grid.images, positions / image);
  }
  grid.boxes[0] = ceil_div(grid.images, grid.box_images);
  for (int axis = 0; axis < 3; ++axis) grid.boxes[axis + 1] = ceil_div(grid.extent[axis], grid.box[axis]);
}

std::int64_t box_total(const GridArgs& grid) { return grid.boxes[0] * grid.boxes[1] * grid.boxes[2] * grid.boxes[3]; }

// The run that covers a box at the least cost: long runs waste halo positions, short ones the last vector of each and
// `run_cost` vectors to start.
int choose_run_axis(const GridArgs& grid, const std::int64_t (&patch)[3], std::int64_t lanes, std::int64_t run_cost) {
  const std::int64_t extent[4] = {grid.box_images, grid.box[0], grid.box[1], grid.box[2]};
  const std::int64_t pitch[4] = {patch[0] * patch[1] * patch[2], patch[1] * patch[2], patch[2], 1};
  int best = 3;
  std::int64_t least = 0;
  for (int run_axis = 3; run_axis >= 0; --run_axis) {
    std::int64_t runs = 1, length = 1;
    for (int axis = 0; axis < run_axis; ++axis) runs *= extent[axis];
    for (int axis = run_axis; axis < 4; ++axis) length += (extent[axis] - 1) * pitch[axis];
    const std::int64_t cost = runs * (ceil_div(length, lanes) + run_cost);
    if (run_axis == 3 || cost < least) {
      best = run_axis;
      least = cost;
    }
  }
  return best;
}

void set_patch(PatchArgs& patch, const GridArgs& grid, const Triple& halo) {
  for (int axis = 0; axis < 3; ++axis) patch.extent[axis] = grid.box[axis] + halo[axis];
}

std::int64_t patch_positions(const PatchArgs& patch, const GridArgs& grid) {
  return grid.box_images * patch.extent[0] * patch.extent[1] * patch.extent[2];
}

}  // namespace

CorrelationPlan plan_correlation(const Problem& problem, Direction direction, const TensorView& source,
                                 const TensorView& filter, const TensorView& destination, DType dtype,
                                 const Kernels& kernels, int threads) {
  const bool is_forward = direction == Direction::forward;
  const std::int64_t lanes = kernels.lanes[int(dtype)];
  CorrelationPlan plan;
  CorrelationArgs& args = plan.args;
  args.groups = problem.groups;
  args.source_channels = is_forward ? problem.group_in_channels() : problem.group_out_channels();
  args.destination_channels = is_forward ? problem.group_out_channels() : problem.group_in_channels();
  args.destination = destination;
  args.filter = filter.data;
  args.filter_group_stride = problem.group_in_channels() * filter.strides[0];
  args.filter_channel_stride = filter.strides[is_forward ? 0 : 1];
  args.filter_row_stride = filter.strides[is_forward ? 1 : 0];
  args.patch.source = source;

  // Taps, sorted by destination phase; the gradient has one, and reads a source plane per phase instead.
  const std::int64_t filter_stride[3] = {filter.strides[2], filter.strides[3], filter.strides[4]};
  PhaseNumbers planes;
  std::int64_t phases = 1;
  Triple halo, low;
  for (int axis = 0; axis < kAxes; ++axis) {
    const Axis& a = problem.axes[axis];
    const Range shifts = shift_span(a, Origin::aligned);
    args.destination_stride[axis] = is_forward ? a.stride : 1;
    args.patch.stride[axis] = is_forward ? 1 : a.stride;
    phases *= args.destination_stride[axis];
    halo[axis] = shifts.size() - 1;
    low[axis] = args.patch.low[axis] = is_forward ? 1 - shifts.end : shifts.begin;
    args.grid.extent[axis] = is_forward ? q_grid(a, Origin::aligned).count : a.input;
  }
  struct Sorted {
    std::int64_t phase;
    CorrelationTap tap;
    std::int64_t plane;
  };
  std::vector<Sorted> sorted;
  for (const TapAt& at : all_taps(problem, filter_stride)) {
    Sorted entry{0, {}, is_forward ? planes({0, 0, 0}) : planes(at.phase)};
    for (int axis = 0; axis < kAxes; ++axis) {
      entry.tap.offset[axis] = is_forward ? -at.shift[axis] : at.shift[axis];
      entry.tap.residue[axis] = is_forward ? 0 : at.phase[axis];
      entry.phase = entry.phase * args.destination_stride[axis] + (is_forward ? at.phase[axis] : 0);
    }
    entry.tap.filter_offset = at.filter_offset;
    sorted.push_back(entry);
  }
  std::stable_sort(sorted.begin(), sorted.end(), [](const Sorted& a, const Sorted& b) { return a.phase < b.phase; });
  plan.residues = planes.residues;
  args.patch.planes = std::int64_t(plan.residues.size());
  args.tap_count = std::int64_t(sorted.size());
  plan.phase_begin.assign(phases + 1, 0);
  for (const Sorted& entry : sorted) ++plan.phase_begin[entry.phase + 1];
  for (std::int64_t phase = 0; phase < phases; ++phase) plan.phase_begin[phase + 1] += plan.phase_begin[phase];

  // Panels and groups.
  args.panel_rows = kernels.panel_rows[int(dtype)];
  args.panels = ceil_div(args.destination_channels, args.panel_rows);
  args.block_panels = by_channel(destination)
                          ? std::min(args.panels, std::max<std::int64_t>(1, kChannelsLastRows / args.panel_rows))
                          : 1;
  // Groups of few channels share a task where channels are neighbours in memory.
  const std::int64_t widest = std::max(args.source_channels, args.destination_channels);
  args.group_block =
      by_channel(source) || by_channel(destination)
          ? std::clamp<std::int64_t>(kChannelsLastRows / std::max<std::int64_t>(widest, 1), 1, args.groups)
          : 1;
  if (args.group_block > 1) args.block_panels = args.panels;
  args.block_rows = args.group_block > 1 ? args.group_block * args.destination_channels
                                         : std::min(args.block_panels * args.panel_rows, args.destination_channels);
  args.group_blocks = ceil_div(args.groups, args.group_block);

  std::int64_t destination_bytes = storage_bytes(dtype);
  for (const std::int64_t size : destination.sizes) destination_bytes *= size;
  args.streaming = destination_bytes >= kStreamingBytes;

  // Boxes: as large as the scratch allows, smaller when there are too few tasks for the threads.
  args.grid.images = destination.sizes[0];
  const std::int64_t w_phases = args.destination_stride[2];
  const std::int64_t position_bytes =
      accumulator_bytes(dtype) *
      (args.group_block * args.source_channels * args.patch.planes + w_phases * args.block_rows);
  std::int64_t positions = std::clamp(kScratchBytes / position_bytes, kMinPositions, kMaxPositions);
  const std::int64_t wanted = threads > 1 ? kTasksPerThread * threads : 1;
  for (;; positions /= 2) {
    choose_boxes(args.grid, halo, positions, lanes);
    if (box_total(args.grid) * args.group_blocks >= wanted || positions / 2 < 4 * kMinPositions) break;
  }
  const std::int64_t blocks = ceil_div(args.panels, args.block_panels);
  args.panel_splits = std::clamp<std::int64_t>(ceil_div(wanted, box_total(args.grid) * args.group_blocks), 1, blocks);
  set_patch(args.patch, args.grid, halo);
  // A run's start costs about as much as eight multiply-adds of a vector.
  const std::int64_t depth =
      args.source_channels * ceil_div(args.tap_count, phases) * std::min(args.panel_rows, args.destination_channels);
  args.grid.run_axis = choose_run_axis(args.grid, args.patch.extent, lanes, depth <= 8 ? 1 : 0);
  args.accumulator_pitch = plane_pitch(patch_positions(args.patch, args.grid), lanes);
  args.patch.plane_pitch = args.accumulator_pitch;

  for (const Sorted& entry : sorted) {
    CorrelationTap tap = entry.tap;
    tap.patch_offset = 0;
    for (int axis = 0; axis < kAxes; ++axis) {
      tap.patch_offset = tap.patch_offset * args.patch.extent[axis] + tap.offset[axis] - low[axis];
    }
    tap.patch_offset += entry.plane * args.patch.plane_pitch;
    plan.taps.push_back(tap);
  }
  plan.tasks = box_total(args.grid) * args.group_blocks * args.panel_splits;
  plan.packed_elements = args.groups * args.destination_channels * args.source_channels * args.tap_count;
  plan.scratch_elements = args.group_block * args.source_channels * args.patch.planes * args.patch.plane_pitch + lanes +
                          w_phases * args.block_rows * args.accumulator_pitch + w_phases * args.grid.box[2] + lanes +
                          w_phases;
  args.taps = plan.taps.data();
  args.phase_begin = plan.phase_begin.data();
  args.patch.residue = reinterpret_cast<const std::int64_t (*)[3]>(plan.residues.data());
  return plan;
}

WeightGradientPlan plan_weight_gradient(const Problem& problem, const TensorView& grad_output, const TensorView& input,
                                        DType dtype, const Kernels& kernels) {
  const std::int64_t lanes = kernels.lanes[int(dtype)];
  WeightGradientPlan plan;
  WeightGradientArgs& args = plan.args;
  args.groups = problem.groups;
  args.in_channels = problem.group_in_channels();
  args.out_channels = problem.group_out_channels();
  args.input.source = input;
  args.grad_output.source = grad_output;
  args.grid.images = std::max<std::int64_t>(input.sizes[0], 1);  // an empty batch: an empty sum

  Triple halo;
  for (int axis = 0; axis < kAxes; ++axis) {
    const Axis& a = problem.axes[axis];
    const Range shifts = shift_span(a, Origin::aligned);
    halo[axis] = shifts.size() - 1;
    args.input.stride[axis] = 1;
    args.input.low[axis] = 1 - shifts.end;
    args.grad_output.stride[axis] = a.stride;
    args.grad_output.low[axis] = 0;
    args.grid.extent[axis] = q_grid(a, Origin::aligned).count;
  }
  const std::int64_t filter_stride[3] = {problem.axes[1].filter * problem.axes[2].filter, problem.axes[2].filter, 1};
  const std::vector<TapAt> taps = all_taps(problem, filter_stride);
  PhaseNumbers planes;
  for (const TapAt& at : taps) planes(at.phase);
  args.grad_output.planes = std::int64_t(planes.residues.size());
  args.tap_count = problem.taps();

  const std::int64_t out_channels =
      std::max<std::int64_t>(8, kDotOutChannels / std::max<std::int64_t>(1, args.grad_output.planes / 2));
  args.in_block = std::min(args.in_channels, kDotInChannels);
  args.out_block = std::min(args.out_channels, out_channels);
  args.in_blocks = ceil_div(args.in_channels, args.in_block);
  args.out_blocks = ceil_div(args.out_channels, args.out_block);
  const bool gather = by_channel(input) || by_channel(grad_output);
  args.group_block =
      gather && args.in_blocks == 1 && args.out_blocks == 1
          ? std::clamp<std::int64_t>(
                kChannelsLastRows / std::max<std::int64_t>({args.in_channels, args.out_channels, 1}), 1, args.groups)
          : 1;
  args.group_blocks = ceil_div(args.groups, args.group_block);

  const std::int64_t position_bytes =
      accumulator_bytes(dtype) * args.group_block * (args.in_block + args.out_block * args.grad_output.planes);
  choose_boxes(args.grid, halo, std::clamp(kDotBytes / position_bytes, kMinPositions, kMaxPositions), lanes);
  set_patch(args.input, args.grid, halo);
  set_patch(args.grad_output, args.grid, {0, 0, 0});
  args.input.planes = 1;
  args.grid.run_axis = choose_run_axis(args.grid, args.input.extent, lanes, 1);
  args.input.plane_pitch = args.grad_output.plane_pitch = plane_pitch(patch_positions(args.input, args.grid), lanes);

  plan.partial_elements = args.groups * args.in_channels * args.out_channels * args.tap_count;
  const std::int64_t tasks = args.in_blocks * args.out_blocks * args.group_blocks;
  const std::int64_t affordable = std::max<std::int64_t>(
      1, kPartialBytes / std::max<std::int64_t>(1, plan.partial_elements * accumulator_bytes(dtype)));
  args.slices = std::min({ceil_div(kDotTasks, tasks), box_total(args.grid), affordable});
  plan.tasks = tasks * args.slices;
  plan.scratch_elements = args.group_block * (args.in_block * args.input.plane_pitch +
                                              args.out_block * args.grad_output.planes * args.grad_output.plane_pitch) +
                          2 * lanes;

  plan.plane_begin.assign(args.grad_output.planes + 1, 0);
  for (std::int64_t plane = 0; plane < args.grad_output.planes; ++plane) {
    for (const TapAt& at : taps) {
      if (planes(at.phase) != plane) continue;
      WeightGradientTap tap{0, at.filter_offset};
      for (int axis = 0; axis < kAxes; ++axis) {
        tap.input_offset = tap.input_offset * args.input.extent[axis] - at.shift[axis] - args.input.low[axis];
      }
      plan.taps.push_back(tap);
    }
    plan.plane_begin[plane + 1] = std::int64_t(plan.taps.size());
  }
  plan.residues = planes.residues;
  // Plane 0 of the input patch: the input itself.
  plan.residues.push_back({0, 0, 0});
  args.taps = plan.taps.data();
  args.plane_begin = plan.plane_begin.data();
  args.grad_output.residue = reinterpret_cast<const std::int64_t (*)[3]>(plan.residues.data());
  args.input.residue = args.grad_output.residue + args.grad_output.planes;
  return plan;
}

}  // namespace convt::host
