#pragma once

namespace convt {

// The operators are the partial derivatives of sum(input * filter * output): one of the three tensors is written, the other two are
// read. grad_input writes in the input's place and reads grad_output in the output's, grad_weight writes in the filter's.
enum class Operator : int { forward, grad_input, grad_weight };
inline constexpr int kOperators = 3;

constexpr const char* name_of(Operator op) {
  constexpr const char* names[kOperators] = {"forward", "grad_input", "grad_weight"};
  return names[int(op)];
}

}  // namespace convt
