#include "launch/depthwise_patch.hpp"

#include <algorithm>
#include <cmath>

namespace convt {

// Offsets inside a box have 32 bits.
constexpr double kLargest = 2147483648.0;

std::int64_t lay_out(DepthwisePatch& patch, const DepthwiseTensor& tensor, const DepthwiseBox& box, bool aligned,
                     std::int64_t size, std::int64_t begin, std::int64_t threads) {
  const std::int64_t unit = depthwise_unit(size), slots = box.slots;
  const bool channels_inner = box.column_pitch > 1;
  const auto whole = [&](int axis, std::int64_t extent) { return extent == 1 || tensor.strides[axis] % unit == 0; };
  patch.channels_inner = tensor.strides[4] == 1 && tensor.extent[2] > 1  ? false
                         : tensor.strides[1] == 1 && tensor.channels > 1 ? true
                                                                         : channels_inner;
  patch.vectors = aligned && whole(0, tensor.batch) && whole(2, tensor.extent[0]) && whole(3, tensor.extent[1]);
  if (patch.channels_inner) {
    patch.vectors = patch.vectors && tensor.strides[1] == 1 && tensor.channels % unit == 0 && slots % unit == 0 &&
                    whole(4, tensor.extent[2]);
  } else {
    patch.vectors =
        patch.vectors && tensor.strides[4] == 1 && tensor.extent[2] % unit == 0 && whole(1, tensor.channels);
  }
  patch.pixel_lines = patch.channels_inner && box.pixels[1] == 1;
  const std::int64_t lines = box.pixels[patch.pixel_lines ? 2 : 1];   // of a plane
  const std::int64_t load = patch.vectors ? unit : 1;
  std::int64_t columns = box.pixels[2], units = slots / load;   // of a pixel
  if (!patch.channels_inner) {
    units = ceil_div(columns + load - 1, load);                 // of a channel
    columns = units * load;
    patch.lead = std::int32_t(round_up(load - 1, box.phases));
  }
  const std::int64_t per_phase = ceil_div(columns + patch.lead, box.phases);
  std::int64_t row = per_phase * box.column_pitch, beside = slots;
  if (channels_inner) {
    patch.side_pitch = 1;
  } else {
    patch.side_pitch = std::int32_t(row);
    beside = box.row_pitch ? std::min(slots, box.row_pitch / row) : 1;
  }
  if (box.row_pitch) {
    if (row > box.row_pitch || beside < 1) return -1;
    row = box.row_pitch;
  }
  const std::int64_t rows = ceil_div(box.pixels[1], box.row_phases), stacks = ceil_div(slots, beside);
  const std::int64_t plane = box.phases * box.row_phases * rows * row, end = stacks * box.pixels[0] * plane;
  if (begin + end >= (1 << 26)) return -1;
  patch.column_pitch = std::int32_t(box.column_pitch);
  patch.row_pitch = std::int32_t(row);
  patch.row_phase_pitch = std::int32_t(rows * row);
  patch.phase_pitch = std::int32_t(box.row_phases * rows * row);
  patch.plane_pitch = std::int32_t(plane);
  patch.stack_pitch = std::int32_t(box.pixels[0] * plane);

  for (int i = 0; i < 2 + kAxes; ++i) patch.strides[i] = tensor.strides[i];
  double span = 0;
  const std::int64_t extents[] = {tensor.channels, tensor.extent[0], tensor.extent[1]};
  const std::int64_t inside[] = {slots, box.pixels[0], box.pixels[1]};
  for (int i = 0; i < 3; ++i) {
    patch.strides[1 + i] = extents[i] == 1 ? 0 : tensor.strides[1 + i];
    span += std::abs(double(patch.strides[1 + i])) * double(size * inside[i]);
    if (span >= kLargest) return -1;
    patch.steps[i] = std::int32_t(patch.strides[1 + i] * size);
  }
  if (patch.pixel_lines) {
    if (std::abs(double(tensor.strides[4])) * double(size * box.pixels[2]) + span >= kLargest) return -1;
    patch.steps[2] = std::int32_t(tensor.strides[4] * size);
  }
  for (int a = 0; a < kAxes; ++a) patch.extent[a] = std::int32_t(tensor.extent[a]);
  patch.channels = std::int32_t(tensor.channels);
  patch.begin = std::int32_t(begin);
  patch.units = std::int32_t(units * (!patch.channels_inner ? beside : patch.pixel_lines ? 1 : box.pixels[2]));
  patch.lines = std::int32_t(box.pixels[0] * lines * (patch.channels_inner ? 1 : stacks));
  patch.by_lanes = FastDivisor(std::min<std::int64_t>(patch.units, threads));
  patch.by_rows = FastDivisor(lines);
  patch.by_planes = FastDivisor(box.pixels[0]);
  patch.by_row_phases = FastDivisor(box.row_phases);
  patch.by_phases = FastDivisor(box.phases);
  patch.by_beside = FastDivisor(beside);
  patch.by_units = FastDivisor(units);
  return begin + round_up(end, 4);
}

std::int64_t lay_out_lines(DepthwisePatch& patch, std::int64_t accumulator, std::int64_t begin) {
  patch.table = std::int32_t(begin);
  return begin + patch.lines * std::int64_t(sizeof(DepthwiseLine)) / accumulator;
}

DepthwiseLoadCost load_cost(const DepthwisePatch& patch, std::int64_t threads, std::int64_t size) {
  const double unit = patch.vectors ? double(depthwise_unit(size)) : 1;
  const double lanes = double(patch.by_lanes.divisor), lines = std::max(1.0, std::floor(double(threads) / lanes));
  const double rounds = std::ceil(double(patch.units) / lanes) * std::ceil(double(patch.lines) / (4 * lines));
  const double conversions = size == 2 ? unit : 0;
  DepthwiseLoadCost cost;
  cost.instructions = 40 + std::ceil(double(patch.units) / lanes) * (50 + 12 * unit) +
                      std::ceil(double(patch.lines) / double(threads)) * 80 +
                      rounds * 4 * (13 + 3 * unit + conversions);
  cost.rounds = rounds;
  const bool contiguous = patch.strides[patch.channels_inner ? 1 : 4] == 1;
  const double loads = double(patch.units) * double(patch.lines);
  if (!contiguous) {
    cost.sectors = loads * 32;
  } else if (patch.channels_inner) {
    const double slots = double(patch.by_units.divisor) * unit;
    cost.sectors = loads * unit / slots * (std::ceil(slots * double(size) / 32) * 32);
  } else {
    const double runs = double(patch.units) / double(patch.by_units.divisor);
    cost.sectors = double(patch.lines) * (double(patch.units) * unit * double(size) + 32 * runs);
  }
  return cost;
}

}  // namespace convt
