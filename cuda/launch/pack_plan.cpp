#include "launch/pack_plan.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

namespace convt {
namespace {

constexpr std::int64_t kMostTables = 24 << 10;     // bytes of shared memory for what a thread block tabulates
constexpr std::int64_t kEnoughStaged = 20 << 10;   // bytes: larger jobs leave room for fewer thread blocks
constexpr std::int64_t kEnoughUnits = 512;         // of a thread block

constexpr std::int64_t kUnstaged = std::numeric_limits<std::int32_t>::max();

// What a job reads along one of the filter's axes.
struct Along {
  PackLevel::Cut of;
  std::int64_t extent, stride;
  std::int64_t grain;   // where jobs begin and end is a multiple; 0: all read all of it
  std::int64_t* pitch;
  bool is_cut() const { return grain > 0; }
};

std::vector<Along> axes_of(PackParams& pack) {
  const std::int64_t channels = std::int64_t(pack.vector) << pack.job_planes_log2;
  const std::int64_t rows = std::min(pack.piece_channels, pack.out_channels);
  const auto grain = [](std::int64_t all, std::int64_t most, std::int64_t begins) {
    return most == all ? 0 : std::gcd(std::gcd(all, most), begins);
  };
  std::vector<Along> axes = {
      {PackLevel::reduced, channels, pack.strides[0], grain(pack.in_channels, channels, 0), &pack.pitches[0]},
      {PackLevel::rows, rows, pack.strides[1], grain(pack.out_channels, rows, pack.block_channels), &pack.pitches[1]}};
  for (PackAxis& axis : pack.axes) axes.push_back({PackLevel::whole, axis.filter, axis.pitch, 0, &axis.pitch});
  // From neighbours outwards; what is repeated comes last.
  std::stable_sort(axes.begin(), axes.end(), [](const Along& a, const Along& b) {
    return a.stride != 0 && (b.stride == 0 || a.stride < b.stride);
  });
  return axes;
}

void widen(PackParams& pack, std::int64_t width) {
  PackLevel& run = pack.levels[0];
  run.by_extent = FastDivisor(run.by_extent.divisor * pack.width / width);
  run.elements = std::int32_t(run.elements * width / pack.width);
  run.stride = run.pitch = std::int32_t(width);
  pack.staged_pieces = std::int32_t(pack.staged_pieces * pack.width / width);
  pack.width = std::int32_t(width);
}

// Lays a job's part of the filter out in shared memory, in the order of its strides, and cuts it to pieces. Returns its bytes:
// kUnstaged where a stride has more than 31 bits.
std::int64_t stage(PackParams& pack, std::int64_t conv_groups) {
  const std::int64_t bytes = operand_bytes(pack.operand);
  std::int64_t size = bytes, pieces = 1;
  std::int64_t width = conv_groups > 1 ? std::gcd<std::int64_t>(16, pack.group_stride) : 16;
  pack.staged_levels = 0;
  bool is_cut = false;   // the level ends here
  for (const Along& axis : axes_of(pack)) {
    // Rows would find neighbouring channels in few banks.
    if (axis.of == PackLevel::rows && axis.extent > 1 && size % 16 == 0) size += 4;
    *axis.pitch = size;
    size *= axis.extent;
    pieces *= axis.extent;
    if (axis.is_cut()) width = std::gcd(width, axis.grain * axis.stride);
    if (axis.extent == 1) continue;
    if (axis.stride > std::numeric_limits<std::int32_t>::max()) return kUnstaged;
    const PackLevel::Cut cut = axis.is_cut() ? axis.of : PackLevel::whole;
    PackLevel* const last = pack.staged_levels > 0 ? &pack.levels[pack.staged_levels - 1] : nullptr;
    const std::int64_t extent = last ? last->by_extent.divisor : 0;
    if (last && !is_cut && axis.stride == std::int64_t(last->stride) * extent &&
        *axis.pitch == std::int64_t(last->pitch) * extent) {
      last->inner = std::int32_t(extent);
      last->by_extent = FastDivisor(extent * axis.extent);
      last->cut = cut;
    } else {
      if (last) width = std::gcd(width, axis.stride);
      pack.levels[pack.staged_levels++] = {
          std::int32_t(axis.stride), std::int32_t(*axis.pitch), 1, 1, FastDivisor(axis.extent), cut};
    }
    is_cut = axis.is_cut();
  }
  PackLevel& run = pack.levels[0];
  pack.width = std::int32_t(bytes);
  pack.staged_pieces = std::int32_t(pieces);
  if (run.stride == bytes) widen(pack, std::gcd(width, run.by_extent.divisor * bytes));
  return size;
}

std::int64_t table_bytes(const PackParams& pack, std::int64_t steps) {
  return 16 + pack.rows * sizeof(PackRow) + steps * (sizeof(PackStep) + 8 * pack.slots) + 24;
}

}  // namespace

PackParams plan_packing(const GemmShape& shape, const GemmPlan& plan, const Strides& filter, std::int64_t counters,
                        const DeviceTraits& device) {
  const Problem& problem = shape.problem;
  const GemmParams& gemm = plan.params;
  const std::int64_t bytes = operand_bytes(plan.operand);
  PackParams pack{};
  // Rows are output channels of the problem, or its input channels; conv groups lie along the latter.
  const bool forward = shape.op == Operator::forward;
  pack.strides[0] = filter[forward ? 0 : 1] * bytes;
  pack.strides[1] = filter[forward ? 1 : 0] * bytes;
  pack.group_stride = problem.group_in_channels() * filter[0] * bytes;
  for (int axis = 0; axis < kAxes; ++axis) {
    const Axis& along = problem.axes[axis];
    const GemmShape::Along& own = shape.axes[axis];
    pack.axes[axis] = {forward ? own.stride : -own.step,
                       forward ? 1 : -along.stride,
                       forward ? -along.stride : 1,
                       along.padding - origin_offset(along, plan.origin[axis]),
                       along.dilation,
                       along.filter,
                       filter[2 + axis] * bytes,
                       FastDivisor(own.stride),
                       FastDivisor(own.step)};
  }
  pack.table = gemm.table;
  pack.counters = std::int32_t(counters);
  pack.in_channels = gemm.in_channels;
  pack.out_channels = gemm.out_channels;
  pack.block_channels = gemm.block_channels;
  pack.channel_blocks = gemm.channel_blocks;
  pack.phase_blocks = gemm.phase_blocks;
  pack.chunks = gemm.chunks;
  pack.steps = gemm.steps;
  pack.rows = plan.config.rows;
  pack.planes = plan.config.planes;
  pack.slab_vectors = plan.config.slab_bytes(plan.operand) / 16;
  pack.vector = operand_vector(plan.operand);
  pack.operand = plan.operand;
  for (std::int32_t block = 0; block < gemm.phase_blocks; ++block) {
    pack.slots = std::max(pack.slots, reinterpret_cast<const PhaseBlock*>(plan.tables.data())[block].slots);
  }
  pack.order = gemm.order;
  pack.by_slots = FastDivisor(pack.slots);
  pack.pieces = pack.ranges = 1;
  pack.piece_channels = pack.block_channels;
  pack.pitches[0] = pack.strides[0];
  pack.pitches[1] = pack.strides[1];
  pack.width = std::int32_t(bytes);

  const std::int64_t chunks = std::int64_t(gemm.conv_groups) * gemm.channel_blocks * gemm.chunks;
  const auto staged = [&](std::int64_t piece_channels, int planes_log2) {
    PackParams made = pack;
    made.piece_channels = std::int32_t(piece_channels);
    made.pieces = std::int32_t(ceil_div(pack.block_channels, piece_channels));
    made.job_planes_log2 = planes_log2;
    made.shared.bytes = std::int32_t(stage(made, gemm.conv_groups));
    return made;
  };
  const std::int64_t tables = table_bytes(pack, pack.steps);
  if (tables <= kMostTables) {
    const std::int64_t room = PackFilter::kMostShared - tables;
    PackParams made = staged(pack.block_channels, 0);
    for (std::int64_t pieces = 2; made.shared.bytes > room && made.piece_channels > 1; ++pieces) {
      made = staged(ceil_div(pack.block_channels, pieces), 0);
    }
    for (int log2 = 1; made.pieces == 1 && pack.planes >> log2 > 0; ++log2) {
      if (chunks * (pack.planes >> log2) < 3 * device.multiprocessors) break;
      const PackParams larger = staged(pack.block_channels, log2);
      if (larger.shared.bytes > std::min(room, kEnoughStaged)) break;
      made = larger;
    }
    if (made.shared.bytes <= room) pack = made;
  }

  // Few jobs: several thread blocks stage the same and write different steps. Units that are gathered from the filter itself
  // wait for it.
  const bool stages = pack.staged_levels > 0;
  pack.jobs = std::int32_t(chunks * (pack.planes >> pack.job_planes_log2));
  const std::int64_t shares = std::int64_t(pack.jobs) * pack.pieces;
  const std::int64_t units = (std::int64_t(pack.steps) * pack.rows << pack.job_planes_log2) / pack.pieces;
  const std::int64_t wanted = std::clamp<std::int64_t>((stages ? 1 : 4) * device.multiprocessors / shares, 1,
                                                       ceil_div(units, stages ? kEnoughUnits : kEnoughUnits / 2));
  const std::int64_t fitting = (kMostTables - table_bytes(pack, 0)) / (table_bytes(pack, 1) - table_bytes(pack, 0));
  pack.range_steps = std::int32_t(std::min(ceil_div(pack.steps, wanted), fitting));
  pack.ranges = std::int32_t(ceil_div(pack.steps, pack.range_steps));

  pack.by_shares = FastDivisor(std::int64_t(pack.pieces) * pack.ranges);
  pack.by_pieces = FastDivisor(pack.pieces);
  pack.by_job_planes = FastDivisor(pack.planes >> pack.job_planes_log2);
  pack.by_chunks = FastDivisor(pack.chunks);
  pack.by_channel_blocks = FastDivisor(pack.channel_blocks);

  PackShared& layout = pack.shared;
  const std::int64_t filter_bytes = stages ? layout.bytes : 0;
  layout.rows = 0;
  layout.steps = 16 + pack.rows * std::int32_t(sizeof(PackRow));
  layout.taps = std::int32_t(round_up(layout.steps + pack.range_steps * std::int32_t(sizeof(PackStep)), 8));
  layout.filter = std::int32_t(round_up(layout.taps + 8 * pack.range_steps * pack.slots, 16));
  layout.bytes = std::int32_t(layout.filter + filter_bytes);

  const std::int64_t resident =
      std::clamp<std::int64_t>(device.shared_per_multiprocessor / (layout.bytes + 1024), 1, PackFilter::kMinBlocks);
  const std::int64_t blocks = std::clamp<std::int64_t>(
      device.multiprocessors * resident / (std::int64_t(pack.pieces) * pack.ranges), 1, pack.jobs);
  pack.blocks = std::int32_t(ceil_div(pack.jobs, ceil_div(pack.jobs, blocks)));
  return pack;
}

void align_packing(PackParams& pack) {
  const auto address = reinterpret_cast<std::uintptr_t>(pack.filter);
  if (pack.staged_levels == 0 || address % pack.width == 0) return;
  widen(pack, std::int64_t(std::gcd<std::uintptr_t>(address, pack.width)));
}

}  // namespace convt
