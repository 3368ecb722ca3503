#include "launch/sum_partials.hpp"

namespace convt {

SumShape sum_shape(const Request& request, std::int64_t splits) {
  const Problem& problem = request.problem;
  SumShape shape{problem.taps(), problem.in_channels, problem.group_out_channels(), splits, {}, {}};
  for (int axis = 0; axis < kAxes; ++axis) shape.filter[axis] = problem.axes[axis].filter;
  for (int axis = 0; axis < 2 + kAxes; ++axis) shape.strides[axis] = request.filter[axis];
  return shape;
}

std::int64_t partial_bytes(const Request& request, std::int64_t splits) {
  const Problem& problem = request.problem;
  return splits * problem.taps() * problem.in_channels * problem.group_out_channels() *
         accumulator_bytes(request.dtype);
}

}  // namespace convt
