#pragma once

#include "geometry/tap_table.hpp"
#include "launch/request.hpp"

namespace convt {

// An operator as the implicit GEMM computes it: its rows are channels of what is written, its reduction runs over channels of
// what is read. Forward: output and input. grad_input: grad_input and grad_output.
struct GemmShape {
  struct Along {
    std::int64_t input, output;   // extents, pixels
    std::int64_t stride;          // output pixels from one q to the next: phases
    std::int64_t step;            // input pixels from one patch pixel to the next: parts
    std::int64_t outputs = 1;     // neighbours that are phases as well: as many times both
  };
  Operator op = Operator::forward;
  Problem problem;
  std::int64_t in_channels = 1, out_channels = 1;   // per group
  Along axes[kAxes];              // D, H, W
  Strides input{}, output{};      // elements

  bool gathers_along_channels() const { return input[1] == 1; }
  bool stores_along_channels() const { return output[1] == 1 && output[4] != 1; }
  // Output phases that hold a tap.
  std::int64_t reached_phases(int axis) const {
    const Axis& along = problem.axes[axis];
    const std::int64_t outputs = axes[axis].outputs;
    if (axes[axis].stride == outputs) return outputs;
    return outputs * (tap_period(along) < along.filter ? tap_period(along) : along.filter);
  }
};

// `request` is forward or grad_input.
inline GemmShape gemm_shape(const Request& request) {
  const Problem& problem = request.problem;
  const bool forward = request.op == Operator::forward;
  GemmShape shape;
  shape.op = request.op;
  shape.problem = problem;
  shape.in_channels = forward ? problem.group_in_channels() : problem.group_out_channels();
  shape.out_channels = forward ? problem.group_out_channels() : problem.group_in_channels();
  for (int axis = 0; axis < kAxes; ++axis) {
    const Axis& along = problem.axes[axis];
    shape.axes[axis] = forward ? GemmShape::Along{along.input, along.output(), along.stride, 1}
                               : GemmShape::Along{along.output(), along.input, 1, along.stride};
  }
  shape.input = forward ? request.input : request.output;
  shape.output = forward ? request.output : request.input;
  return shape;
}

// The same with so many neighbouring outputs along an axis as phases, of those that it has.
inline GemmShape together(GemmShape shape, int axis, std::int64_t outputs) {
  GemmShape::Along& along = shape.axes[axis];
  along.outputs = outputs;
  along.stride *= outputs;
  along.step *= outputs;
  return shape;
}

// Whether neighbours that come together give channels to rows of a tile that would be empty: they fit, and read something in common.
inline constexpr std::int64_t kMostTogether = 4;
inline bool fills_rows(const GemmShape& shape, int axis, std::int64_t outputs, std::int64_t rows) {
  double used = double(shape.out_channels) * double(outputs);
  for (const GemmShape::Along& along : shape.axes) used *= double(along.stride);
  const Axis& along = shape.problem.axes[axis];
  return outputs > 1 && used <= double(rows) && along.filter > along.stride && shape.axes[axis].output >= outputs;
}

inline bool has_together(const GemmShape& shape) {
  return shape.axes[0].outputs * shape.axes[1].outputs * shape.axes[2].outputs > 1;
}

// Whether channels lie in aligned vectors of 16 bytes, and there are no others.
inline bool whole_vectors(const Strides& strides, std::int64_t channels, int vector) {
  for (int axis = 0; axis < int(strides.size()); ++axis) {
    if (axis != 1 && strides[axis] % vector != 0) return false;
  }
  return strides[1] == 1 && channels % vector == 0;
}

}  // namespace convt
