#pragma once

#include <memory>

#include "geometry/epilogue.hpp"
#include "geometry/problem.hpp"
#include "host/tensor.hpp"

// The operators on the CPU. Tensors are logically (batch, channels, D, H, W) of one dtype with any strides; results are
// written whole and never overlap the arguments. A program is applied before the result is rounded. Throws std::bad_alloc before anything is written.
namespace convt::host {

void forward(const Problem& problem, DType dtype, const TensorView& input, const TensorView& filter,
             const TensorView* bias, const TensorView& output, const Program* program = nullptr);

// The same with everything that does not depend on the data done once.
class PreparedForward {
 public:
  // The views' data pointers are not looked at.
  PreparedForward(const Problem& problem, DType dtype, const TensorView& input, const TensorView& filter,
                  const TensorView& output);
  ~PreparedForward();
  void run(const void* input, const void* filter, const TensorView* bias, void* output,
           const Program* program = nullptr) const;
  bool is_tiny() const;   // a microsecond or less: not worth releasing a lock for

 private:
  struct State;
  std::unique_ptr<const State> state_;
};

void grad_input(const Problem& problem, DType dtype, const TensorView& grad_output, const TensorView& filter,
                const TensorView& grad_input);
void grad_weight(const Problem& problem, DType dtype, const TensorView& grad_output, const TensorView& input,
                 const TensorView& grad_filter);
void grad_bias(DType dtype, const TensorView& grad_output, const TensorView& grad_bias);  // bias: channels at index 1

// Tests: scratch memory starts as NaN.
void set_poison(bool on);

}  // namespace convt::host
