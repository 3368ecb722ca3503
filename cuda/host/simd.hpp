#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace convt::host::CONVT_ISA {

#if defined(CONVT_ISA_avx512)
inline constexpr int kVectorBytes = 64;
#elif defined(CONVT_ISA_avx2)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Simd {
  static constexpr int lanes = kVectorBytes / int(sizeof(T));
  typedef T Vec __attribute__((vector_size(kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
template <class T>
using Vec = typename Simd<T>::Vec;
template <class T>
inline constexpr int kLanes = Simd<T>::lanes;

template <class T>
inline Vec<T> load(const T* from) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(from);
}
template <class T>
inline void store(T* to, Vec<T> value) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(to) = value;
}

// A store past the caches; `to` is aligned to the vector.
template <class T>
inline void stream(T* to, Vec<T> value) {
#if defined(CONVT_ISA_avx512)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(value));
#elif defined(CONVT_ISA_avx2)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(value));
#else
  store(to, value);
#endif
}
inline void finish_streams() {
#ifdef __F16C__
  _mm_sfence();
#endif
}

// --- storage types -------------------------------------------------------------------------------------------------

struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

template <class S>
inline constexpr bool kIsHalf = false;
template <>
inline constexpr bool kIsHalf<Half> = true;

template <class S>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return bits_as<float>(std::uint32_t(x.bits) << 16); }
inline float widen(Half x) {
#ifdef __F16C__
  return _cvtsh_ss(x.bits);
#else
  const std::uint32_t sign = std::uint32_t(x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_as<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Subnormals included: the exponent is rebased by an exact multiplication.
  return bits_as<float>(sign | bits_as<std::uint32_t>(bits_as<float>(magnitude << 13) * 0x1p112f));
#endif
}

template <class S, class T>
inline S narrow(T x);
template <>
inline float narrow<float, float>(float x) {
  return x;
}
template <>
inline double narrow<double, double>(double x) {
  return x;
}
template <>
inline BFloat16 narrow<BFloat16, float>(float x) {
  const std::uint32_t bits = bits_as<std::uint32_t>(x);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {std::uint16_t(x != x ? 0x7fc0u : rounded)};
}
template <>
inline Half narrow<Half, float>(float x) {
#ifdef __F16C__
  return {std::uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  const std::uint32_t bits = bits_as<std::uint32_t>(x);
  const std::uint16_t sign = std::uint16_t((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {std::uint16_t(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {std::uint16_t(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {
    // Adding 0.5 lines the subnormal grid up with the float's last bit, so the addition rounds to nearest even.
    const float aligned = bits_as<float>(magnitude) + 0.5f;
    return {std::uint16_t(sign | (bits_as<std::uint32_t>(aligned) - 0x3f000000u))};
  }
  const std::uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {std::uint16_t(sign | (rounded - 0x38000000u) >> 13)};
#endif
}

template <class S, class T>
inline void widen_row(T* to, const S* from, std::int64_t count) {
  std::int64_t i = 0;
#ifdef __F16C__
  if constexpr (kIsHalf<S>) {
#ifdef __AVX512F__
    for (; i + 16 <= count; i += 16) {
      _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i))));
    }
#endif
    for (; i + 8 <= count; i += 8) {
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
    }
  }
#endif
  if constexpr (sizeof(S) == sizeof(T)) {
    for (; i + kLanes<T> <= count; i += kLanes<T>) store(to + i, load(from + i));
  }
  for (; i < count; ++i) to[i] = widen(from[i]);
}

template <class S, class T>
inline void narrow_row(S* to, const T* from, std::int64_t count) {
  std::int64_t i = 0;
#ifdef __F16C__
  if constexpr (kIsHalf<S>) {
    for (; i + 8 <= count; i += 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
    }
  }
#endif
  for (; i < count; ++i) to[i] = narrow<S, T>(from[i]);
}

// --- lanes ---------------------------------------------------------------------------------------------------------

template <class T>
struct LaneIndex;
template <>
struct LaneIndex<float> {
  using type = std::int32_t;
};
template <>
struct LaneIndex<double> {
  using type = std::int64_t;
};

// The first `count` elements, zeros behind them; the whole vector must be readable.
template <class T>
inline Vec<T> load_first(const T* from, int count) {
  using Index = typename LaneIndex<T>::type;
  Vec<Index> lane;
  for (int i = 0; i < kLanes<T>; ++i) lane[i] = i;
  return lane < Vec<Index>{} + Index(count) ? load(from) : Vec<T>{};
}

template <class T>
using LaneSequence = std::make_integer_sequence<int, kLanes<T>>;

// Every second element, starting with from[0] or from[1].
template <class T, int First, int... I>
inline Vec<T> load_alternate(const T* from, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(load(from), load(from + kLanes<T>), (2 * I + First)...);
}

// a[0], b[0], a[1], b[1], ... over both vectors.
template <class T, int... I>
inline void interleave_lanes(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, I...>) {
  constexpr int L = kLanes<T>;
  const Vec<T> first = __builtin_shufflevector(a, b, (I / 2 + I % 2 * L)...);
  b = __builtin_shufflevector(a, b, (L / 2 + I / 2 + I % 2 * L)...);
  a = first;
}

// Rows a and b, Distance apart, exchange the lanes whose index has (a: does, b: does not have) that bit: one step of a
// transposition; summing the two results instead halves the rows of a reduction.
template <class T, int Distance, int... I>
inline void exchange(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, I...>) {
  constexpr int L = kLanes<T>;
  const Vec<T> first = __builtin_shufflevector(a, b, (I & Distance ? L + I - Distance : I)...);
  b = __builtin_shufflevector(a, b, (I & Distance ? L + I : I + Distance)...);
  a = first;
}

template <class T, int Distance = 1>
inline void transpose(Vec<T> (&rows)[kLanes<T>]) {
#pragma GCC unroll 16
  for (int row = 0; row < kLanes<T>; ++row) {
    if (!(row & Distance)) exchange<T, Distance>(rows[row], rows[row + Distance], LaneSequence<T>{});
  }
  if constexpr (2 * Distance < kLanes<T>) transpose<T, 2 * Distance>(rows);
}

// Lane i of the result is the sum of the lanes of rows[i].
template <class T, int Distance = 1>
inline Vec<T> row_sums(Vec<T> (&rows)[kLanes<T>]) {
#pragma GCC unroll 16
  for (int row = 0; row < kLanes<T>; row += 2 * Distance) {
    exchange<T, Distance>(rows[row], rows[row + Distance], LaneSequence<T>{});
    rows[row] += rows[row + Distance];
  }
  if constexpr (2 * Distance < kLanes<T>) {
    return row_sums<T, 2 * Distance>(rows);
  } else {
    return rows[0];
  }
}

}  // namespace convt::host::CONVT_ISA
