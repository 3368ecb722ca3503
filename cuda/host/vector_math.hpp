#pragma once

#include "host/simd.hpp"

// Elementary functions of whole vectors, for the epilogue: a few units in the last place, Inf and NaN as the definition has them.
namespace convt::host::CONVT_ISA {

template <class T>
struct FloatFormat;
template <>
struct FloatFormat<float> {
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float rounder = 0x1.8p23f;      // added and taken away: the nearest integer
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440054690583e-4f;   // integer * high is exact
  static constexpr float exp_least = -88, exp_most = 89;   // the powers of 2 there are zero and infinity
  static constexpr int taylor = 7;                 // degree of exp on [-ln 2 / 2, ln 2 / 2]
  static constexpr std::int32_t high_half = ~0xfff;   // bits whose square is exact
};
template <>
struct FloatFormat<double> {
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double rounder = 0x1.8p52;
  static constexpr double ln2_high = 0x1.62e42fep-1, ln2_low = 0x1.f473de6af278fp-30;
  static constexpr double exp_least = -709.2, exp_most = 710;
  static constexpr int taylor = 13;
  static constexpr std::int64_t high_half = ~0x7ffffffLL;
};

template <class T>
using LaneInteger = typename LaneIndex<T>::type;
template <class T>
inline Vec<LaneInteger<T>> bits_of(Vec<T> x) {
  return reinterpret_cast<Vec<LaneInteger<T>>>(x);
}
template <class T>
inline Vec<T> from_bits(Vec<LaneInteger<T>> bits) {
  return reinterpret_cast<Vec<T>>(bits);
}

// NaN stays NaN.
template <class T>
inline Vec<T> at_most(Vec<T> x, T limit) {
  const Vec<T> limits = Vec<T>{} + limit;
  return x > limits ? limits : x;
}
template <class T>
inline Vec<T> at_least(Vec<T> x, T limit) {
  const Vec<T> limits = Vec<T>{} + limit;
  return x < limits ? limits : x;
}
template <class T>
inline Vec<T> absolute(Vec<T> x) {
  return from_bits<T>(bits_of<T>(x) & ~(LaneInteger<T>(1) << (8 * sizeof(T) - 1)));
}

template <class T>
inline Vec<T> power_of_2(Vec<LaneInteger<T>> exponent) {
  using Format = FloatFormat<T>;
  return from_bits<T>((exponent + LaneInteger<T>(Format::bias)) << Format::mantissa);
}

// x + low = exponent * ln 2 + rest.
template <class T>
struct Reduced {
  Vec<LaneInteger<T>> exponent;
  Vec<T> rest;
};
template <class T>
inline Reduced<T> reduce(Vec<T> x, Vec<T> low) {
  using Format = FloatFormat<T>;
  const Vec<T> shifted = x * T(1.4426950408889634) + Format::rounder;
  const Vec<T> integer = shifted - Format::rounder;
  return {bits_of<T>(shifted) - bits_of<T>(Vec<T>{} + Format::rounder),
          (x - integer * Format::ln2_high) - integer * Format::ln2_low + low};
}

// (exp(x) - 1 - x) / x**2 near zero, by its Taylor series.
template <class T>
inline Vec<T> exp_tail(Vec<T> x) {
  constexpr int last = FloatFormat<T>::taylor;
  double factorial = 1;
  for (int i = 2; i <= last; ++i) factorial *= i;
  double coefficient = 1 / factorial;
  Vec<T> sum = Vec<T>{} + T(coefficient);
#pragma GCC unroll 16
  for (int i = last; i > 2; --i) {
    coefficient *= i;
    sum = sum * x + T(coefficient);
  }
  return sum;
}

// exp(x + low), where low is small; zero where it would be subnormal, infinity from exponent 128 (1024) on.
template <class T>
inline Vec<T> exponential(Vec<T> x, Vec<T> low = Vec<T>{}) {
  using Format = FloatFormat<T>;
  const Reduced<T> reduced = reduce<T>(at_least<T>(at_most<T>(x, Format::exp_most), Format::exp_least), low);
  const Vec<T> mantissa = (reduced.rest * reduced.rest) * exp_tail<T>(reduced.rest) + reduced.rest + T(1);
  return mantissa * power_of_2<T>(reduced.exponent);
}

template <class T>
inline Vec<T> sigmoid(Vec<T> x) {
  return T(1) / (T(1) + exponential<T>(-x));
}

// expm1(2 |x|) / (expm1(2 |x|) + 2), which keeps its digits near zero.
template <class T>
inline Vec<T> hyperbolic_tangent(Vec<T> x) {
  const Vec<T> twice = at_most<T>(T(2) * absolute<T>(x), T(44));
  const Reduced<T> reduced = reduce<T>(twice, Vec<T>{});
  const Vec<T> power = power_of_2<T>(reduced.exponent);
  const Vec<T> rest = (reduced.rest * reduced.rest) * exp_tail<T>(reduced.rest) + reduced.rest;
  const Vec<T> less_one = power * rest + (power - T(1));
  const Vec<T> result = less_one / (less_one + T(2));
  return from_bits<T>(bits_of<T>(result) | (bits_of<T>(x) & (LaneInteger<T>(1) << (8 * sizeof(T) - 1))));
}

// exp(y**2 / 2) * (1 + y) * P(Z < -y) of a normal variable Z, y >= 0: a polynomial in (y - 4) / (y + 4), by interpolation at
// Chebyshev points.
template <class T>
inline constexpr T kTail[] = {};
template <>
inline constexpr float kTail<float>[] = {0x1.e361eap-2f,  -0x1.8c18f0p-4f,  0x1.cabd5ap-7f,  0x1.d49534p-6f,
                                         -0x1.07c350p-5f, 0x1.25ec42p-6f,   -0x1.47e06ap-8f, -0x1.3bbe06p-12f,
                                         0x1.6ab344p-11f, -0x1.0e773ep-14f, -0x1.33eb0cp-14f};
template <>
inline constexpr double kTail<double>[] = {
    0x1.e361ea6fba141p-2,  -0x1.8c18f2086e32ep-4,  0x1.cabd72a6103d7p-7,   0x1.d4969f10dd304p-6,
    -0x1.07c3c258357e9p-5, 0x1.25dd72065695dp-6,   -0x1.47d5fc6dd4b19p-8,  -0x1.2b7f5f298e01bp-12,
    0x1.6c5380b089021p-11, -0x1.8c118ecd9e90bp-14, -0x1.707b348fc8905p-14, 0x1.64818cc1830b6p-16,
    0x1.c92ef6e032c49p-17, -0x1.cc70ef9d0cc94p-19, -0x1.5e0b8b67aa701p-19, 0x1.afbf7b7390defp-22,
    0x1.23a239ac9d703p-21, 0x1.8197db15468dbp-29,  -0x1.b2450c1ffd5e3p-24, -0x1.44612ce50e7d8p-26,
    0x1.85a9698c60876p-27, 0x1.2abccac5591abp-28,  0x1.b46032200a2f3p-33};

// P(Z < -|x|), to a few units in the last place in the tail as well: x**2 is taken in two parts.
template <class T>
inline Vec<T> normal_tail(Vec<T> x) {
  const Vec<T> y = at_most<T>(absolute<T>(x), T(40));
  const Vec<T> high = from_bits<T>(bits_of<T>(y) & LaneInteger<T>(FloatFormat<T>::high_half));
  // One division for both quotients.
  const Vec<T> above = y + T(4), beyond = y + T(1), inverse = T(1) / (above * beyond);
  const Vec<T> u = (y - T(4)) * (beyond * inverse);
  constexpr int count = int(sizeof kTail<T> / sizeof(T));
  Vec<T> sum = Vec<T>{} + kTail<T>[count - 1];
#pragma GCC unroll 32
  for (int i = count - 2; i >= 0; --i) sum = sum * u + kTail<T>[i];
  return sum * (above * inverse) * exponential<T>(T(-0.5) * (high * high), T(-0.5) * ((y + high) * (y - high)));
}

}  // namespace convt::host::CONVT_ISA
