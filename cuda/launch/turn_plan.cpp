#include "launch/turn_plan.hpp"

#include <algorithm>
#include <limits>

#include "launch/gemm_shape.hpp"

namespace convt {

Strides turned_strides(const TurnShape& shape) {
  Strides turned{};
  std::int64_t stride = shape.pitch;
  turned[1] = 1;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    turned[2 + axis] = stride;
    stride *= shape.extents[axis];
  }
  turned[0] = stride;
  return turned;
}

std::int64_t turned_bytes(const TurnParams& params, Operand operand) {
  return params.images * params.pixels * params.groups * params.pitch * operand_bytes(operand);
}

TurnParams plan_turning(const TurnShape& shape, Operand operand) {
  const int vector = operand_vector(operand);
  TurnParams params{};
  std::copy(shape.strides.begin(), shape.strides.end(), params.strides);
  params.pixels = 1;
  bool flat = true;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    flat = flat && (shape.extents[axis] == 1 || shape.strides[2 + axis] == params.pixels);
    params.pixels *= shape.extents[axis];
  }
  params.from = flat                                                   ? TurnFrom::pixels
                : whole_vectors(shape.strides, shape.channels, vector) ? TurnFrom::channels
                                                                       : TurnFrom::singly;
  std::int64_t places = 16 | params.pixels * operand_bytes(operand);
  if (shape.channels * shape.groups > 1) places |= shape.strides[1] * operand_bytes(operand);
  if (shape.images > 1) places |= shape.strides[0] * operand_bytes(operand);
  params.piece = std::int32_t(places & -places);
  params.channels = std::int32_t(shape.channels);
  params.pitch = std::int32_t(shape.pitch);
  params.groups = std::int32_t(shape.groups);
  params.images = std::int32_t(shape.images);
  params.vectors_log2 = 0;
  while (params.vectors_log2 < 3 && vector << params.vectors_log2 < shape.pitch) ++params.vectors_log2;
  params.by_width = FastDivisor(shape.extents[2]);
  params.by_height = FastDivisor(shape.extents[1]);
  params.by_pitch = FastDivisor(params.pitch);
  const auto divide = [&](auto kernel) {
    params.by_channel_blocks = FastDivisor(kernel.channel_blocks(params));
    params.by_pixel_blocks = FastDivisor(kernel.pixel_blocks(params));
  };
  if (is_float32(operand)) {
    divide(TurnInput<Operand::tf32>{});
  } else {
    divide(TurnInput<Operand::bfloat16>{});
  }
  return params;
}

bool can_turn(const TurnShape& shape) {
  constexpr double most = std::numeric_limits<std::int32_t>::max();
  const double width = double(shape.pitch) * double(shape.groups);
  double pixels = 1;
  for (const std::int64_t extent : shape.extents) pixels *= double(extent);
  const double tiles = double(shape.images) * (pixels / 64 + 1) * (width / 8 + 1);
  const double images = double(shape.images) * double(shape.groups);   // turned groups are further images
  return pixels < most - 256 && tiles < most && width < most && images < most;
}

double turning_time(const TurnShape& shape, Operand operand, const DeviceTraits& device) {
  const double pixels = double(shape.images) * double(shape.pixels()) * double(shape.groups);
  const double bytes = pixels * double(shape.channels + shape.pitch) * operand_bytes(operand);
  // Of what a copy reaches (H200).
  const double share = whole_vectors(shape.strides, shape.channels, operand_vector(operand)) ? 0.97 : 0.78;
  return 4.7 + bytes / (share * device.memory_gbs) * 1e-3;
}

void place_turning(TurnParams& params, const void* source, void* target) {
  params.source = source;
  params.target = target;
  const auto address = reinterpret_cast<std::uintptr_t>(source);
  if (params.from == TurnFrom::channels && address % 16 != 0) params.from = TurnFrom::singly;
  while (address % std::uintptr_t(params.piece) != 0) params.piece /= 2;
}

}  // namespace convt
