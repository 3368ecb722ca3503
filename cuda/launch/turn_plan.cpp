#include "launch/turn_plan.hpp"

#include <algorithm>
#include <limits>

namespace convt {

std::int64_t turned_pitch(const GemmShape& shape, const TileConfig& config, Operand operand) {
  const int vector = operand_vector(operand);
  return round_up(shape.in_channels, shape.problem.groups == 1 ? vector : config.planes * vector);
}

GemmShape turned_shape(const GemmShape& shape, const TileConfig& config, Operand operand) {
  GemmShape turned = shape;
  std::int64_t stride = turned_pitch(shape, config, operand) * shape.problem.groups;
  turned.input[1] = 1;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    turned.input[2 + axis] = stride;
    stride *= shape.axes[axis].input;
  }
  turned.input[0] = stride;
  return turned;
}

TurnParams plan_turning(const GemmShape& shape, const TileConfig& config, Operand operand) {
  const int vector = operand_vector(operand);
  TurnParams params{};
  std::copy(shape.input.begin(), shape.input.end(), params.strides);
  params.pixels = 1;
  bool flat = true;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    const std::int64_t extent = shape.axes[axis].input;
    flat = flat && (extent == 1 || shape.input[2 + axis] == params.pixels);
    params.pixels *= extent;
  }
  params.from = flat                                                    ? TurnFrom::pixels
                : whole_vectors(shape.input, shape.in_channels, vector) ? TurnFrom::channels
                                                                        : TurnFrom::singly;
  std::int64_t places = 16 | params.pixels * operand_bytes(operand);
  if (shape.in_channels * shape.problem.groups > 1) places |= shape.input[1] * operand_bytes(operand);
  if (shape.problem.batch > 1) places |= shape.input[0] * operand_bytes(operand);
  params.piece = std::int32_t(places & -places);
  params.channels = std::int32_t(shape.in_channels);
  params.pitch = std::int32_t(turned_pitch(shape, config, operand));
  params.groups = std::int32_t(shape.problem.groups);
  params.images = std::int32_t(shape.problem.batch);
  params.vectors_log2 = 1;
  while (params.vectors_log2 < 3 && vector << params.vectors_log2 < params.groups * params.pitch) ++params.vectors_log2;
  params.by_width = FastDivisor(shape.axes[2].input);
  params.by_height = FastDivisor(shape.axes[1].input);
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

bool can_turn(const GemmShape& shape, const TileConfig& config, Operand operand) {
  constexpr double most = std::numeric_limits<std::int32_t>::max();
  const double width = double(turned_pitch(shape, config, operand)) * double(shape.problem.groups);
  double pixels = 1;
  for (const GemmShape::Along& along : shape.axes) pixels *= double(along.input);
  const double tiles = double(shape.problem.batch) * (pixels / 64 + 1) * (width / 8 + 1);
  return pixels < most - 256 && tiles < most && width < most;
}

std::int64_t turned_bytes(const TurnParams& params, Operand operand) {
  return params.images * params.pixels * params.groups * params.pitch * operand_bytes(operand);
}

double turning_time(const GemmShape& shape, const TileConfig& config, Operand operand, const DeviceTraits& device) {
  double pixels = double(shape.problem.batch) * double(shape.problem.groups) * operand_bytes(operand);
  for (const GemmShape::Along& along : shape.axes) pixels *= double(along.input);
  const double bytes = pixels * double(shape.in_channels + turned_pitch(shape, config, operand));
  // Of what a copy reaches (H200).
  const bool along = whole_vectors(shape.input, shape.in_channels, operand_vector(operand));
  const double share = along ? 0.97 : 0.78;
  return 4.7 + bytes / (share * device.memory_gbs) * 1e-3;
}

void align_turning(TurnParams& params) {
  const auto address = reinterpret_cast<std::uintptr_t>(params.source);
  if (params.from == TurnFrom::channels && address % 16 != 0) params.from = TurnFrom::singly;
  while (address % std::uintptr_t(params.piece) != 0) params.piece /= 2;
}

}  // namespace convt
