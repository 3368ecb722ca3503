#include "launch/channel_sum.hpp"

#include <algorithm>
#include <limits>

namespace convt {
namespace {

constexpr std::int64_t kThreads = ChannelSum<float, float>::kThreads;

// What follows from rows, shares and the width of a piece.
void fetch_in(ChannelSumShape& shape, std::int64_t piece, std::int64_t element_bytes) {
  shape.piece = std::int32_t(piece);
  shape.row_pieces = std::int32_t(shape.row * element_bytes / piece);
  shape.count = shape.channels_inner ? shape.rows : shape.rows * shape.row_pieces;
  shape.share = std::int32_t(ceil_div(shape.count, shape.shares));
  shape.across =
      shape.channels_inner ? std::int32_t(ceil_div(shape.row_pieces, std::int32_t(kThreads))) : shape.channels;
  shape.by_row_pieces = FastDivisor(shape.row_pieces);
  shape.by_across = FastDivisor(shape.across);
}

// The stride of rows of channels, one behind the other over all pixels and images; 0: there is none.
std::int64_t row_stride(const std::int64_t (&sizes)[2 + kAxes], const Strides& strides) {
  constexpr int order[] = {4, 3, 2, 0};   // W, H, D, N
  if (sizes[1] > 1 && strides[1] != 1) return 0;
  std::int64_t stride = 0, inner = 1;
  for (const int axis : order) {
    if (sizes[axis] == 1) continue;
    if (stride == 0) stride = strides[axis];
    if (strides[axis] != stride * inner) return 0;
    inner *= sizes[axis];
  }
  if (inner == 1) return sizes[1];
  return stride >= sizes[1] ? stride : 0;
}

bool has_rows_of_pixels(const std::int64_t (&sizes)[2 + kAxes], const Strides& strides) {
  std::int64_t inner = 1;
  for (int axis = 4; axis >= 2; --axis) {
    if (sizes[axis] > 1 && strides[axis] != inner) return false;
    inner *= sizes[axis];
  }
  return true;
}

}  // namespace

std::optional<ChannelSumPlan> plan_channel_sum(DType dtype, const std::int64_t (&sizes)[2 + kAxes],
                                               const Strides& strides, const DeviceTraits& device) {
  constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max() - 4096;
  const std::int64_t pixels = sizes[2] * sizes[3] * sizes[4], bytes = storage_bytes(dtype);
  const std::int64_t by_channels = row_stride(sizes, strides);
  const bool by_pixels = has_rows_of_pixels(sizes, strides) && (pixels > 1 || by_channels == 0);
  if (!by_pixels && by_channels == 0) return std::nullopt;
  if (sizes[0] * pixels > most || sizes[1] > most / 1024) return std::nullopt;

  ChannelSumPlan plan;
  plan.dtype = dtype;
  ChannelSumShape& shape = plan.shape;
  shape.channels = std::int32_t(sizes[1]);
  shape.channels_inner = !by_pixels;
  std::int64_t places = 16;
  const auto add = [&](std::int64_t elements, bool stepped = true) { places |= stepped ? elements * bytes : 0; };
  if (by_pixels) {
    shape.strides[0] = strides[0];
    shape.strides[1] = strides[1];
    shape.row = pixels;
    shape.rows = std::int32_t(sizes[0]);
    add(strides[0], sizes[0] > 1);
    add(strides[1], sizes[1] > 1);
  } else {
    shape.strides[0] = by_channels;
    shape.row = sizes[1];
    shape.rows = std::int32_t(sizes[0] * pixels);
    add(by_channels, shape.rows > 1);
  }
  add(shape.row);
  shape.shares = 1;
  fetch_in(shape, places & -places, bytes);
  // Eight thread blocks for every multiprocessor, or as many as have a few pieces for each of their threads. A second launch
  // sums the shares.
  const std::int64_t each = by_pixels ? kThreads * 8 : std::max<std::int64_t>(kThreads / shape.row_pieces, 1) * 8;
  const std::int64_t wanted = ceil_div(std::int64_t(by_pixels ? 8 : 4) * device.multiprocessors, shape.across);
  shape.shares = std::int32_t(std::clamp<std::int64_t>(ceil_div(std::int64_t(shape.count), each), 1, wanted));
  fetch_in(shape, shape.piece, bytes);
  if (shape.shares > 1) {
    const std::int64_t sum_bytes = accumulator_bytes(dtype);
    plan.workspace_bytes = std::int64_t(shape.shares) * shape.channels * sum_bytes;
    ChannelSumShape& second = plan.of_shares;
    second.channels = shape.channels;
    second.channels_inner = 1;
    second.shares = 1;
    second.strides[0] = second.row = shape.channels;
    second.rows = shape.shares;
    const std::int64_t row_bytes = 16 | second.row * sum_bytes;
    fetch_in(second, row_bytes & -row_bytes, sum_bytes);
  }
  return plan;
}

ChannelSumShape align_channel_sum(const ChannelSumPlan& plan, const void* source) {
  ChannelSumShape shape = plan.shape;
  std::int64_t piece = shape.piece;
  while (reinterpret_cast<std::uintptr_t>(source) % std::uintptr_t(piece) != 0) piece /= 2;
  fetch_in(shape, piece, storage_bytes(plan.dtype));
  return shape;
}

}  // namespace convt
