#pragma once

#include "geometry/epilogue.hpp"
#include "host/vector_math.hpp"

// The steps of an epilogue on pieces of destination rows, while they are in the first cache.
namespace convt::host::CONVT_ISA {

// Where a piece lies: `rows` of `count` destination elements, from this element on, along two axes of (batch, channel, D, H, W).
struct PieceAt {
  std::int64_t at[5];
  int row_axis;
  std::int64_t row_step;     // elements of the axis from one row to the next
  int axis;                  // along a row
  std::int64_t rows, count;
};

inline constexpr std::int64_t kPiece = 512;   // values of a piece: rows rounded up to vectors

template <class S, class T>
inline void read_row(T* to, const S* from, std::int64_t stride, std::int64_t count) {
  if (stride == 1) {
    widen_row(to, from, count);
  } else if (stride == 0) {
    const Vec<T> same = Vec<T>{} + T(widen(from[0]));
    for (std::int64_t i = 0; i < count; i += kLanes<T>) store(to + i, same);
  } else {
    for (std::int64_t i = 0; i < count; ++i) to[i] = widen(from[i * stride]);
  }
}

template <class S, class T>
void read_tensor(T* to, const EpilogueTensor& tensor, const PieceAt& piece, std::int64_t pitch) {
  std::int64_t first = 0;
  for (int axis = 0; axis < 5; ++axis) first += piece.at[axis] * tensor.strides[axis];
  const std::int64_t step = piece.row_step * tensor.strides[piece.row_axis], stride = tensor.strides[piece.axis];
  for (std::int64_t row = 0; row < piece.rows; ++row, first += step, to += pitch) {
    if (tensor.dtype == DType::float32) {
      read_row(to, static_cast<const float*>(tensor.data) + first, stride, piece.count);
    } else {
      read_row(to, static_cast<const S*>(tensor.data) + first, stride, piece.count);
    }
  }
}

template <class T, class Map>
inline void each_vector(T* values, std::int64_t count, Map map) {
  for (std::int64_t i = 0; i < count; i += kLanes<T>) store(values + i, map(load(values + i)));
}

template <class T>
void apply_binary(Pointwise operation, T* values, const T* others, std::int64_t count) {
  const auto each = [&](auto map) {
    for (std::int64_t i = 0; i < count; i += kLanes<T>) store(values + i, map(load(values + i), load(others + i)));
  };
  switch (operation) {
    case Pointwise::add:
      return each([](Vec<T> x, Vec<T> y) { return x + y; });
    case Pointwise::sub:
      return each([](Vec<T> x, Vec<T> y) { return x - y; });
    case Pointwise::mul:
      return each([](Vec<T> x, Vec<T> y) { return x * y; });
    default:
      return each([](Vec<T> x, Vec<T> y) { return x / y; });
  }
}

template <class T>
void apply_unary(const EpilogueStep<double>& step, T* values, std::int64_t count) {
  using V = Vec<T>;
  const T a = T(step.a), b = T(step.b);
  const auto each = [&](auto map) { each_vector(values, count, map); };
  switch (step.operation) {
    case Pointwise::add:
      return each([=](V x) { return x + a; });
    case Pointwise::sub:
      return each([=](V x) { return x - a; });
    case Pointwise::mul:
      return each([=](V x) { return x * a; });
    case Pointwise::div:
      return each([=](V x) { return x / a; });
    case Pointwise::relu:
      return each([](V x) { return at_least<T>(x, T(0)); });
    case Pointwise::leaky_relu:
      return each([=](V x) { return x > V{} ? x : x * a; });
    case Pointwise::clamp:
      return each([=](V x) { return at_most<T>(at_least<T>(x, a), b); });
    case Pointwise::gelu:
      return each([](V x) {
        const V tail = normal_tail<T>(x);
        return x * (x > V{} ? T(1) - tail : tail);
      });
    case Pointwise::gelu_tanh:
      return each([](V x) { return x * sigmoid<T>(x * (T(1.5957691216057308) + T(0.07135481627260025) * (x * x))); });
    case Pointwise::silu:
      return each([](V x) { return x / (T(1) + exponential<T>(-x)); });
    case Pointwise::sigmoid:
      return each([](V x) { return sigmoid<T>(x); });
    case Pointwise::tanh:
      return each([](V x) { return hyperbolic_tangent<T>(x); });
    case Pointwise::hardswish:
      return each([](V x) { return x * at_most<T>(at_least<T>(x + T(3), T(0)), T(6)) / T(6); });
    case Pointwise::mish:
      // tanh(log(1 + e**x)) = (e**2x + 2 e**x) / (e**2x + 2 e**x + 2)
      return each([](V x) {
        const V power = exponential<T>(at_most<T>(x, T(40))), product = power * (power + T(2));
        return x * (product / (product + T(2)));
      });
  }
}

// values: rows of a piece, `pitch` apart, a multiple of the vector; what lies between count and pitch is anything.
template <class S, class T>
void apply_program(const Program& program, T* values, const PieceAt& piece, std::int64_t pitch) {
  const std::int64_t count = piece.rows * pitch;
  for (int i = 0; i < program.count; ++i) {
    const EpilogueStep<double>& step = program.steps[i];
    if (step.tensor < 0) {
      apply_unary(step, values, count);
    } else {
      alignas(64) T others[kPiece];
      read_tensor<S>(others, program.tensors[step.tensor], piece, pitch);
      apply_binary(step.operation, values, others, count);
    }
  }
}

}  // namespace convt::host::CONVT_ISA
