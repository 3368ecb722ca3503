#pragma once

#include <cmath>
#include <type_traits>

#include "arch/copy.hpp"
#include "geometry/epilogue.hpp"

// The steps of an epilogue on values in registers.
namespace convt {

// Where the first value of a piece lies in the output: batch, channel, D, H, W.
struct OutputPlace {
  std::int64_t at[2 + kAxes];

  CONVT_HOST_DEVICE std::int64_t offset(const EpilogueTensor& tensor) const {
    std::int64_t offset = 0;
#pragma unroll
    for (int axis = 0; axis < 2 + kAxes; ++axis) offset += at[axis] * tensor.strides[axis];
    return offset;
  }
};

// Some elements of an operand, neighbours `stride` apart; those that do not exist are zero and not read.
template <class From, class T, int kCount>
CONVT_HOST_DEVICE inline void read_elements(T (&to)[kCount], const void* data, std::int64_t offset, std::int64_t stride,
                                            std::uint32_t exists) {
  const From* const from = static_cast<const From*>(data) + offset;
  if constexpr (kCount % kPacked<From> == 0) {
    if (stride == 1 && exists == std::uint32_t((1ull << kCount) - 1) &&
        reinterpret_cast<std::uintptr_t>(from) % 16 == 0) {
#pragma unroll
      for (int piece = 0; piece < kCount / kPacked<From>; ++piece) {
        Accumulator<From> values[kPacked<From>];
        unpack<From>(read_global16(from + piece * kPacked<From>), values);
#pragma unroll
        for (int lane = 0; lane < kPacked<From>; ++lane) to[piece * kPacked<From> + lane] = values[lane];
      }
      return;
    }
  }
  if (stride == 0) {
    const T same = exists != 0 ? T(widen(read_global(from))) : T(0);
#pragma unroll
    for (int j = 0; j < kCount; ++j) to[j] = same;
    return;
  }
#pragma unroll
  for (int j = 0; j < kCount; ++j) to[j] = exists >> j & 1 ? T(widen(read_global(from + j * stride))) : T(0);
}

template <class S, int kCount>
CONVT_HOST_DEVICE inline void read_operand(Accumulator<S> (&to)[kCount], const EpilogueTensor& tensor,
                                           std::int64_t offset, std::int64_t stride, std::uint32_t exists) {
  if constexpr (!std::is_same_v<S, float>) {
    if (tensor.dtype != DType::float32) return read_elements<S>(to, tensor.data, offset, stride, exists);
  }
  read_elements<float>(to, tensor.data, offset, stride, exists);
}

// The operations that cost many instructions; `other` is the divisor. All but two end in the one division.
template <class T>
CONVT_HOST_DEVICE inline T costly_operation(Pointwise operation, T x, T other) {
  if (operation == Pointwise::gelu) return T(0.5) * x * std::erfc(x * T(-0.70710678118654752));
  if (operation == Pointwise::tanh) return std::tanh(x);
  T numerator = x, denominator = other, factor = 1;
  if (operation == Pointwise::hardswish) {
    const T shifted = x + T(3), least = shifted < 0 ? T(0) : shifted;
    numerator = x * (least > 6 ? T(6) : least);
    denominator = 6;
  } else if (operation != Pointwise::div) {
    // gelu_tanh is x * sigmoid(2 u): 1 + tanh(u) loses its digits where u is negative.
    T power = operation == Pointwise::gelu_tanh ? x * (T(-1.5957691216057308) + T(-0.07135481627260025) * (x * x)) : -x;
    if (operation == Pointwise::mish) power = x > 40 ? T(40) : x;
    power = std::exp(power);
    denominator = 1 + power;
    if (operation == Pointwise::sigmoid) numerator = 1;
    if (operation == Pointwise::mish) {
      // tanh(log(1 + e**x)) = (e**2x + 2 e**x) / (e**2x + 2 e**x + 2)
      numerator = power * (power + 2);
      denominator = numerator + 2;
      factor = x;
    }
  }
  return factor * (numerator / denominator);
}

// Every step on all values of a piece; `exists`: a bit for each, the others may be anything. place and axis: where the
// values lie in the output, and along what they are `spread` elements apart.
template <class S, int kCount>
CONVT_HOST_DEVICE inline void apply_program(const EpilogueProgram<Accumulator<S>>& program,
                                            Accumulator<S> (&value)[kCount], std::uint32_t exists,
                                            const OutputPlace& place, int axis, std::int64_t spread) {
  using T = Accumulator<S>;
  // Costly operations are written once, not once per value: the values take turns in the first registers.
  constexpr int kTogether = kCount >= 2 ? 2 : 1;
  static_assert(kCount % kTogether == 0 && kCount <= 32, "values take turns; a bit for each");
#pragma unroll 1
  for (int index = 0; index < program.count; ++index) {
    const Pointwise operation = program.steps[index].operation;
    const T a = program.steps[index].a, b = program.steps[index].b;
    T other[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) other[j] = a;
    if (program.steps[index].tensor >= 0) {
      const EpilogueTensor& tensor = program.tensors[program.steps[index].tensor];
      read_operand<S>(other, tensor, place.offset(tensor), spread * tensor.strides[axis], exists);
    }
    switch (operation) {
      case Pointwise::add:
#pragma unroll
        for (int j = 0; j < kCount; ++j) value[j] += other[j];
        break;
      case Pointwise::sub:
#pragma unroll
        for (int j = 0; j < kCount; ++j) value[j] -= other[j];
        break;
      case Pointwise::mul:
#pragma unroll
        for (int j = 0; j < kCount; ++j) value[j] *= other[j];
        break;
      case Pointwise::relu:
#pragma unroll
        for (int j = 0; j < kCount; ++j) value[j] = value[j] < 0 ? T(0) : value[j];
        break;
      case Pointwise::leaky_relu:
#pragma unroll
        for (int j = 0; j < kCount; ++j) value[j] = value[j] > 0 ? value[j] : value[j] * a;
        break;
      case Pointwise::clamp:
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
          const T least = value[j] < a ? a : value[j];   // NaN stays NaN
          value[j] = least > b ? b : least;
        }
        break;
      default:
#pragma unroll 1
        for (int done = 0; done < kCount; done += kTogether) {
          T mapped[kTogether], used[kTogether];
#pragma unroll
          for (int j = 0; j < kTogether; ++j) {
            mapped[j] = costly_operation(operation, value[j], other[j]);
            used[j] = other[j];
          }
#pragma unroll
          for (int j = 0; j < kCount - kTogether; ++j) {
            value[j] = value[j + kTogether];
            other[j] = other[j + kTogether];
          }
#pragma unroll
          for (int j = 0; j < kTogether; ++j) {
            value[kCount - kTogether + j] = mapped[j];
            other[kCount - kTogether + j] = used[j];
          }
        }
    }
  }
}

}  // namespace convt
