#pragma once

#include "launch/gemm_cost.hpp"
#include "launch/outer_plan.hpp"

// How a box of the weight gradient for Hopper lies in shared memory, and how it comes there.
namespace convt {

struct OuterWork {
  const Request& request;
  const DeviceTraits& device;
  const OuterConfig& config;
  Operand operand;
  Innermost inner;

  const Problem& problem() const { return request.problem; }
  int vector() const { return operand_vector(operand); }
  int bytes() const { return operand_bytes(operand); }
  std::int64_t octets() const { return ceil_div(problem().group_out_channels(), kOctet); }
  std::int64_t row_blocks() const { return ceil_div(problem().group_in_channels(), config.channels); }
  double weights() const { return double(problem().taps() * problem().in_channels * problem().group_out_channels()); }
};

// Taps of a block along every axis, the patch that they read for a box of positions, and how it lies in shared memory.
struct OuterCandidate {
  std::int64_t octets = 0, splits = 1;
  std::int64_t taps[kAxes] = {1, 1, 1};
  TileBox box{};
  std::int64_t extent[kTileAxes] = {1, 1, 1, 1};   // of a patch, pixels
  std::int32_t input_piece = 1, patch_piece = 1, phases = 1, stages = 0;
  int conflicts = 1;                               // rounds of an access to shared memory that one would do
  OuterShared shared{};
  std::int32_t pixel_bytes = 0, channel_bytes = 0, octet_bytes = 0, lanes_log2 = 0;
  GemmCost cost;

  std::int64_t pixels() const { return extent[0] * extent[1] * extent[2] * extent[3]; }
  std::int64_t tap_blocks(const Problem& problem) const {
    std::int64_t blocks = 1;
    for (int axis = 0; axis < kAxes; ++axis) blocks *= ceil_div(problem.axes[axis].filter, taps[axis]);
    return blocks;
  }
};

// Pixels of a copy along rows of so many, so that it is aligned and lies inside of the image or outside.
std::int32_t widest_piece(const OuterWork& work, const Strides& strides, std::int64_t row);
bool input_by_registers(const OuterWork& work, const OuterCandidate& choice);
bool patch_by_registers(const OuterWork& work, const OuterCandidate& choice);
// Elements of a copy.
double input_width(const OuterWork& work, const OuterCandidate& choice);
double patch_width(const OuterWork& work, const OuterCandidate& choice);
// The first grad_output pixel that a block's taps read along an axis, of position 0. Rows begin where a copy may.
std::int64_t low_of(const OuterWork& work, const OuterCandidate& choice, int axis, std::int64_t first_tap);
void measure_patch(const OuterWork& work, OuterCandidate& choice);
OuterShared shared_of(const OuterConfig& config, Operand operand, std::int32_t patch_stage_bytes, std::int32_t stages,
                      std::int32_t entries);
// False when it does not fit.
bool lay_out(const OuterWork& work, OuterCandidate& choice);

}  // namespace convt
