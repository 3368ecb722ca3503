#pragma once

#include "geometry/dtype.hpp"
#include "geometry/problem.hpp"

// What follows a transposed convolution, as a short program: every step maps the accumulator plus bias of an output, in
// order, before it is rounded to the output's type. Plain values: a program travels as a kernel parameter.
namespace convt {

enum class Pointwise : int {
  add,
  sub,
  mul,
  div,
  relu,
  leaky_relu,
  clamp,
  gelu,
  gelu_tanh,
  silu,
  sigmoid,
  tanh,
  hardswish,
  mish,
};
// The one list of their names.
inline constexpr const char* kPointwiseNames[] = {"add",  "sub",       "mul",  "div",     "relu", "leaky_relu", "clamp",
                                                  "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "hardswish",  "mish"};
inline constexpr int kPointwise = int(sizeof kPointwiseNames / sizeof kPointwiseNames[0]);
static_assert(kPointwise == int(Pointwise::mish) + 1, "a name per operation");

// Operations with two arguments: the value, and a scalar or an element of a tensor.
constexpr bool is_binary(Pointwise operation) { return operation <= Pointwise::div; }

inline constexpr int kEpilogueSteps = 8;
inline constexpr int kEpilogueTensors = 4;

// A tensor of the output's sizes, zeros among its strides: along all axes but the channels when it has one value per channel.
struct EpilogueTensor {
  const void* data;
  std::int64_t strides[2 + kAxes];   // batch, channel, D, H, W, elements
  DType dtype;                       // the output's, or float32
};

template <class T>
struct EpilogueStep {
  Pointwise operation;
  int tensor;   // index into tensors; -1: the scalar a
  T a, b;       // leaky_relu: a is the negative slope; clamp: least and most
};

// T: of the accumulators. Programs are made with double; the types of a program and of its output are checked there.
template <class T>
struct EpilogueProgram {
  int count = 0;
  EpilogueStep<T> steps[kEpilogueSteps] = {};
  EpilogueTensor tensors[kEpilogueTensors] = {};
};
using Program = EpilogueProgram<double>;

// The same with constants of the accumulators' type; null is no step.
template <class T>
EpilogueProgram<T> program_as(const Program* program) {
  EpilogueProgram<T> typed;
  if (program == nullptr) return typed;
  typed.count = program->count;
  for (int i = 0; i < kEpilogueSteps; ++i) {
    const EpilogueStep<double>& step = program->steps[i];
    typed.steps[i] = {step.operation, step.tensor, T(step.a), T(step.b)};
  }
  for (int i = 0; i < kEpilogueTensors; ++i) typed.tensors[i] = program->tensors[i];
  return typed;
}

}  // namespace convt
