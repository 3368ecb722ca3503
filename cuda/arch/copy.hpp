#pragma once

#include "arch/convert.hpp"

// Memory accesses whose instruction matters, with plain C++ for the host.
namespace convt {

// Memory that nobody writes during the kernel.
template <class S>
CONVT_HOST_DEVICE inline S read_global(const S* from) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(S) == 2) {
    return {__ldg(&from->bits)};
  } else {
    return __ldg(from);
  }
#else
  return *from;
#endif
}

CONVT_HOST_DEVICE inline Vector16 read_global16(const void* from) {
#ifdef __CUDA_ARCH__
  const uint4 bits = __ldg(static_cast<const uint4*>(from));
  return {{bits.x, bits.y, bits.z, bits.w}};
#else
  return *static_cast<const Vector16*>(from);
#endif
}

// kBytes of them, 8 or 16, aligned to as many.
template <int kBytes>
CONVT_HOST_DEVICE inline void read_global_unit(void* to, const void* from) {
  static_assert(kBytes == 8 || kBytes == 16, "what one instruction loads");
#ifdef __CUDA_ARCH__
  if constexpr (kBytes == 8) {
    const uint2 bits = __ldg(static_cast<const uint2*>(from));
    std::memcpy(to, &bits, sizeof bits);
  } else {
    const uint4 bits = __ldg(static_cast<const uint4*>(from));
    std::memcpy(to, &bits, sizeof bits);
  }
#else
  std::memcpy(to, from, kBytes);
#endif
}

CONVT_HOST_DEVICE inline void write_global16(void* to, const Vector16& bits) {
#ifdef __CUDA_ARCH__
  // In PTX: nvcc takes some of these stores apart.
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(to)), "r"(bits.word[0]), "r"(bits.word[1]), "r"(bits.word[2]),
                 "r"(bits.word[3])
               : "memory");
#else
  *static_cast<Vector16*>(to) = bits;
#endif
}

// 16 bytes of shared memory.
template <class T>
struct alignas(16) SharedVector {
  T lane[16 / sizeof(T)];
};

// One element from global to shared memory, or zero. Asynchronous where an instruction copies this size without a
// conversion; complete after wait_copies() and a barrier. `from` is not read when it is not valid.
template <class S>
CONVT_HOST_DEVICE inline void copy_element(Accumulator<S>* to, const S* from, bool valid) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(S) == sizeof(Accumulator<S>)) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(std::uint32_t(__cvta_generic_to_shared(to))), "l"(__cvta_generic_to_global(from)),
                   "n"(int(sizeof(S))), "r"(valid ? int(sizeof(S)) : 0)
                 : "memory");
    return;
  }
#endif
  *to = valid ? widen(*from) : Accumulator<S>(0);
}

CONVT_HOST_DEVICE inline void wait_copies() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
#endif
}

}  // namespace convt
