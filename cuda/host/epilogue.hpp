#pragma once

#include "geometry/epilogue.hpp"
#include "host/grid.hpp"
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
  int next_axis;             // the piece after this one begins next_step further
  std::int64_t next_step;
};

inline constexpr std::int64_t kPiece = 512;   // values of a piece: rows rounded up to vectors

template <class T, class Map>
inline void each_vector(T* values, std::int64_t count, Map map) {
  for (std::int64_t i = 0; i < count; i += kLanes<T>) store(values + i, map(load(values + i)));
}

// Values and a row of an operand. What lies behind the row is not read.
template <class S, class T, class Map>
inline void each_pair(T* values, const S* from, std::int64_t stride, std::int64_t count, Map map) {
  constexpr int L = kLanes<T>;
  if (stride == 0) {
    const Vec<T> same = Vec<T>{} + T(widen(from[0]));
    return each_vector(values, count, [&](Vec<T> x) { return map(x, same); });
  }
  std::int64_t i = 0;
  if constexpr (sizeof(S) == sizeof(T)) {
    if (stride == 1) {
      for (; i + L <= count; i += L) store(values + i, map(load(values + i), load(from + i)));
    }
  }
  constexpr std::int64_t most = 8 * L;
  for (; i < count; i += most) {
    alignas(64) T others[most];
    const std::int64_t some = smaller(most, count - i);
    if (stride == 1) {
      widen_row(others, from + i, some);
    } else {
      for (std::int64_t j = 0; j < some; ++j) others[j] = widen(from[(i + j) * stride]);
    }
    for (std::int64_t j = 0; j < some; j += L) store(values + i + j, map(load(values + i + j), load(others + j)));
  }
}

template <class S, class T, class Map>
inline void each_row(T* values, const EpilogueTensor& tensor, const PieceAt& piece, std::int64_t pitch, Map map) {
  const S* from = static_cast<const S*>(tensor.data);
  for (int axis = 0; axis < 5; ++axis) from += piece.at[axis] * tensor.strides[axis];
  const std::int64_t step = piece.row_step * tensor.strides[piece.row_axis], stride = tensor.strides[piece.axis];
  const std::int64_t next = piece.next_step * tensor.strides[piece.next_axis];
  if constexpr (sizeof(S) == sizeof(T)) {
    if (stride == 1 && piece.count == kLanes<T> && pitch == kLanes<T>) {
      for (std::int64_t row = 0; row < piece.rows; ++row) {
        __builtin_prefetch(from + row * step + next);
        store(values + row * pitch, map(load(values + row * pitch), load(from + row * step)));
      }
      return;
    }
  }
  for (std::int64_t row = 0; row < piece.rows; ++row, from += step, values += pitch) {
    // Pieces are short and lie apart: hardware would see each one too late.
    if (stride == 1 && next != 0) {
      for (std::int64_t i = 0; i < piece.count; i += std::int64_t(64 / sizeof(S))) __builtin_prefetch(from + next + i);
    }
    each_pair(values, from, stride, piece.count, map);
  }
}

template <class S, class T>
void apply_binary(Pointwise operation, T* values, const EpilogueTensor& tensor, const PieceAt& piece,
                  std::int64_t pitch) {
  using V = Vec<T>;
  const auto each = [&](auto map) {
    if (tensor.dtype == DType::float32) {
      each_row<float>(values, tensor, piece, pitch, map);
    } else {
      each_row<S>(values, tensor, piece, pitch, map);
    }
  };
  switch (operation) {
    case Pointwise::add:
      return each([](V x, V y) { return x + y; });
    case Pointwise::sub:
      return each([](V x, V y) { return x - y; });
    case Pointwise::mul:
      return each([](V x, V y) { return x * y; });
    default:
      return each([](V x, V y) { return x / y; });
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
      apply_binary<S>(step.operation, values, program.tensors[step.tensor], piece, pitch);
    }
  }
}

}  // namespace convt::host::CONVT_ISA
