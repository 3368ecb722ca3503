#pragma once

#include "geometry/problem.hpp"
#include "host/tensor.hpp"

// The operators on the CPU. Tensors are logically (batch, channels, D, H, W) of one dtype with any strides; results are
// written whole and never overlap the arguments. Throws std::bad_alloc before anything is written.
namespace convt::host {

void forward(const Problem& problem, DType dtype, const TensorView& input, const TensorView& filter, const TensorView* bias,
             const TensorView& output);
void grad_input(const Problem& problem, DType dtype, const TensorView& grad_output, const TensorView& filter,
                const TensorView& grad_input);
void grad_weight(const Problem& problem, DType dtype, const TensorView& grad_output, const TensorView& input,
                 const TensorView& grad_filter);
void grad_bias(DType dtype, const TensorView& grad_output, const TensorView& grad_bias);   // bias: channels at index 1

// Tests: scratch memory starts as NaN.
void set_poison(bool on);

}  // namespace convt::host
