#pragma once

#include <cmath>
#include <optional>

#include "launch/gemm_plan.hpp"
#include "launch/gemm_tables.hpp"
#include "launch/turn_plan.hpp"

// What a candidate of the implicit GEMM would take, for choosing among them.
namespace convt {

inline constexpr double kMaxPartialBytes = 64 << 20;   // of sums that are split

// What thread blocks may have each so that `blocks` of them fit a multiprocessor, bytes.
std::int64_t shared_capacity(const DeviceTraits& device, std::int64_t blocks);

// Bytes of every tensor of a problem, once.
double tensor_bytes(const Problem& problem, double element_bytes);

// Units overlap, but not perfectly: a norm (2, 4 or 8) of what each needs.
double overlapped(const GemmCost& cost, int norm = 4);

// Thread blocks that a multiprocessor holds: as many as the configuration was made for, fewer where shared memory is
// small. 0: not even one.
int blocks_that_fit(const TileConfig& config, Operand operand, const DeviceTraits& device);

// Pixels that a patch may have, so that `blocks` thread blocks fit a multiprocessor.
std::int64_t pixel_capacity(const TileConfig& config, Operand operand, const DeviceTraits& device, std::int64_t blocks,
                            bool interleaved, WayIn way = WayIn::gathered);

struct GemmWork {
  const GemmShape& shape;
  const DeviceTraits& device;
  const TileConfig& config;
  Operand operand;
  int blocks;                     // that a multiprocessor holds
  std::int64_t capacity;          // pixels of a patch
  double bytes;                   // of all tensors
  bool by_pixels, by_rows;        // what leaves_by_pixels and leaves_by_rows say
  bool even;                      // whether rows of the output begin at multiples of 16 bytes
  WayIn way;

  PatchWork patch_work() const {
    const bool rounds = way == WayIn::boxes && is_float32(operand);   // as they lie in memory
    return way == WayIn::rows ? PatchWork::turn : rounds ? PatchWork::round : PatchWork::none;
  }
  // Whether warps of their own store what leaves so. Rows that are turned leave no room in shared memory's time for rows that are
  // turned back: those who multiply store them faster (H200).
  bool stores_apart(WayOut out) const {
    const bool turns_back = out == WayOut::rows && patch_work() == PatchWork::turn;
    return config.storers(way) > 0 && out != WayOut::staged && !turns_back;
  }
  double mma_steps() const { return std::ceil(double(shape.in_channels) / (kMmaPlanes * operand_vector(operand))); }
  double chunks() const { return std::ceil(mma_steps() * kMmaPlanes / config.planes); }
  PatchLimits limits() const { return {capacity, in_lines(way) ? 0 : config.planes}; }
};

GemmWork gemm_work(const GemmShape& shape, const DeviceTraits& device, const TileConfig& config, Operand operand,
                   int blocks, WayIn way = WayIn::gathered);

// Whether a configuration's patches may come so. Tensor copies know but some steps, strides and groups; of boxes channels are
// innermost in whole vectors, of rows neighbours along W, all of whose rows begin at multiples of 16 bytes.
bool comes(WayIn way, const GemmShape& shape, const TileConfig& config, Operand operand);
// The input as it is turned, every group's channels in whole vectors; and the same operator on one of its groups.
TurnShape turn_shape(const GemmShape& shape, Operand operand);
GemmShape turned_shape(const GemmShape& shape, Operand operand);

// How the sums of a tile leave. Straight from registers: where there are no phases, and pairs of positions do not straddle rows.
WayOut way_out(const GemmWork& work, const TileBox& box, std::int32_t block_channels);

// Whether warpgroups may store along channels, what a block of whole vectors of channels needs beside: a tap at every phase.
bool leaves_by_pixels(const GemmShape& shape, const TileConfig& config);
// Whether they may store whole rows of W phases: no more than a row tile has rows, and a tap at every phase.
bool leaves_by_rows(const GemmShape& shape, const TileConfig& config);
// Bytes of the widest stores, at most 16, for which all rows of the output are aligned, or all pixels, if they begin where the first does.
std::int32_t aligned_bytes(const GemmShape& shape, std::int32_t element_bytes);

// What a tile keeps the units of a multiprocessor busy with, its phase blocks together.
struct TileWork {
  double mma = 0, shared = 0, issue = 0, l2 = 0, steps = 0;
  double loading = 0, leaving = 0, aside = 0;   // of warp instructions
  double storing = 0;                           // the same, by warps that do nothing else
};
// Nothing when a patch does not fit.
std::optional<TileWork> work_of_tile(const GemmWork& work, const std::vector<BlockShifts>& blocks, const TileBox& box,
                                     std::int32_t block_channels);

struct Launch {
  double tiles;           // of all phase blocks each
  double phase_blocks;
  std::int32_t splits;
  double each() const { return phase_blocks * splits; }
};
GemmCost cost_of(const GemmWork& work, const TileWork& tile, const Launch& launch);

// Times that no box falls below, soon told: the work of patches without a halo is linear in a tile's positions and in its rows.
class TileFloor {
 public:
  TileFloor(const GemmWork& work, const std::vector<BlockShifts>& blocks, std::int32_t block_channels);
  double time(const TileBox& box, const Launch& launch) const;
  // Of so many boxes, or more, that cover q positions, whatever their shapes and however they are split.
  double time(const Positions& q, double boxes) const;

 private:
  struct Parts {
    TileWork fixed, position, row;
  };
  TileWork of(const TileBox& box) const;

  const GemmWork& work;
  double phase_blocks;
  std::int32_t block_channels;
  Parts staged, own;              // by the way out
};

}  // namespace convt
