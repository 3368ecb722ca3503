#include "launch/sum_partials.hpp"

#include <algorithm>

namespace convt {

SumShape sum_shape(const Request& request, std::int64_t splits) {
  const Problem& problem = request.problem;
  SumShape shape{};
  shape.taps = problem.taps();
  shape.out_channels = problem.group_out_channels();
  shape.pairs = problem.in_channels * shape.out_channels;
  shape.splits = splits;
  std::copy(request.filter.begin(), request.filter.end(), shape.strides);
  // Tiles as large as leaves a few thread blocks for every multiprocessor of a large GPU, of at least a sector's worth of pairs.
  constexpr std::int64_t least = 16, most_taps = SumPartials<float>::kTile / least, blocks = 528;
  const std::int64_t sums = std::clamp<std::int64_t>(shape.taps * shape.pairs / blocks, 256, SumPartials<float>::kTile);
  shape.tile_taps = std::int32_t(std::min(shape.taps, most_taps));
  while ((std::int64_t(2) << shape.pairs_log2) * shape.tile_taps <= sums || (1 << shape.pairs_log2) < least) {
    ++shape.pairs_log2;
  }
  shape.taps_first = shape.strides[1] != 1;
  shape.by_channels = FastDivisor(shape.out_channels);
  shape.by_tile_taps = FastDivisor(shape.tile_taps);
  shape.by_rows = FastDivisor(problem.axes[1].filter);
  shape.by_columns = FastDivisor(problem.axes[2].filter);
  return shape;
}

std::int64_t partial_bytes(const Request& request, std::int64_t splits) {
  const Problem& problem = request.problem;
  return splits * problem.taps() * problem.in_channels * problem.group_out_channels() *
         accumulator_bytes(request.dtype);
}

}  // namespace convt
