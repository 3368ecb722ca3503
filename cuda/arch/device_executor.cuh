#pragma once

#include <cuda_runtime.h>

#include "arch/lanes.hpp"
#include "config/tile_config.hpp"

// The instructions of sm_80 that the implicit GEMM is made of, and the executor that runs its text on a GPU: a thread is a lane.
namespace convt {

namespace sm80 {

__device__ __forceinline__ void copy_async16(std::uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ void load_matrices(std::uint32_t shared, std::uint32_t& a, std::uint32_t& b,
                                              std::uint32_t& c, std::uint32_t& d) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "r"(shared)
               : "memory");
}

// Every matrix transposed: a thread gets the halves of two neighbouring rows of one column.
__device__ __forceinline__ void load_transposed(std::uint32_t shared, std::uint32_t& a, std::uint32_t& b,
                                                std::uint32_t& c, std::uint32_t& d) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "r"(shared)
               : "memory");
}

// sum += a * b, or sum = a * b when kFresh.
template <Operand kOperand, bool kFresh>
__device__ __forceinline__ void multiply(float (&sum)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  float c0 = kFresh ? 0.f : sum[0], c1 = kFresh ? 0.f : sum[1], c2 = kFresh ? 0.f : sum[2], c3 = kFresh ? 0.f : sum[3];
#define CONVT_MMA(shape)                                                                               \
  asm("mma.sync.aligned." shape " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};" \
      : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3])                                         \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c0), "f"(c1), "f"(c2), "f"(c3))
  if constexpr (is_float32(kOperand)) {
    CONVT_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
  } else if constexpr (kOperand == Operand::bfloat16) {
    CONVT_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  } else {
    CONVT_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  }
#undef CONVT_MMA
}

}  // namespace sm80

// One thread's view of its warp.
class DeviceWarp {
 public:
  // The address goes through a shuffle, or the compiler recomputes it wherever it is used.
  __device__ __forceinline__ explicit DeviceWarp(char* memory)
      : shared_(__shfl_sync(0xffffffffu, std::uint32_t(__cvta_generic_to_shared(memory)), 0)) {}

  __device__ __forceinline__ std::uint32_t address(std::int32_t offset) const { return shared_ + offset; }
  __device__ __forceinline__ std::int32_t index() const { return std::int32_t(threadIdx.x / 32); }
  __device__ __forceinline__ std::int32_t thread(int) const { return std::int32_t(threadIdx.x); }

  __device__ __forceinline__ void sync() { __syncwarp(); }
  template <class Visit>
  __device__ __forceinline__ void lanes(Visit visit) {
    visit(int(threadIdx.x % 32));
  }

  // Shared memory, by byte offset. In PTX: nvcc would find the address of shared memory anew for every access.
  template <class T>
  __device__ __forceinline__ T load(std::int32_t offset) const {
    if constexpr (sizeof(T) == 8) {
      std::uint64_t word;
      asm volatile("ld.shared.b64 %0, [%1];" : "=l"(word) : "r"(shared_ + offset));
      T value;
      memcpy(&value, &word, 8);
      return value;
    } else if constexpr (sizeof(T) == 16) {
      uint4 words;
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                   : "r"(shared_ + offset));
      return __builtin_bit_cast(T, words);
    } else {
      static_assert(sizeof(T) == 4);
      std::uint32_t word;
      asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(shared_ + offset));
      return __builtin_bit_cast(T, word);
    }
  }
  template <class T>
  __device__ __forceinline__ void store(std::int32_t offset, const T& value) {
    if constexpr (sizeof(T) == 16) {
      const uint4 words = __builtin_bit_cast(uint4, value);
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(shared_ + offset), "r"(words.x), "r"(words.y),
                   "r"(words.z), "r"(words.w)
                   : "memory");
    } else if constexpr (sizeof(T) == 8) {
      asm volatile("st.shared.b64 [%0], %1;" ::"r"(shared_ + offset), "l"(__builtin_bit_cast(std::uint64_t, value))
                   : "memory");
    } else if constexpr (std::is_same_v<T, float>) {   // taken for words, sums would be moved about between products
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(shared_ + offset), "f"(value) : "memory");
    } else if constexpr (sizeof(T) == 2) {
      asm volatile("st.shared.b16 [%0], %1;" ::"r"(shared_ + offset), "h"(__builtin_bit_cast(std::uint16_t, value))
                   : "memory");
    } else {
      static_assert(sizeof(T) == 4);
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(shared_ + offset), "r"(__builtin_bit_cast(std::uint32_t, value))
                   : "memory");
    }
  }

  // Global memory that nobody writes during the kernel.
  template <class T>
  __device__ __forceinline__ T global(const char* source) const {
    if constexpr (sizeof(T) == 16) {
      const uint4 loaded = __ldg(reinterpret_cast<const uint4*>(source));
      return {loaded.x, loaded.y, loaded.z, loaded.w};
    } else {
      return __ldg(reinterpret_cast<const T*>(source));
    }
  }
  // A word, or half of one, or four, if they are there; else 0. Predicated in PTX: nvcc would branch around the load, and widen a
  // half where the branches meet, which waits for it.
  template <int kBytes>
  __device__ __forceinline__ std::uint32_t word_if(bool there, const char* source) const {
    std::uint32_t word = 0;
    if constexpr (kBytes == 4) {
      asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; @p ld.global.nc.b32 %0, [%1];}"
                   : "+r"(word)
                   : "l"(source), "r"(int(there)));
    } else {
      asm volatile("{.reg .pred p; setp.ne.b32 p, %2, 0; @p ld.global.nc.u16 %0, [%1];}"
                   : "+r"(word)
                   : "l"(source), "r"(int(there)));
    }
    return word;
  }
  __device__ __forceinline__ Vector16 vector_if(bool there, const char* source) const {
    Vector16 words{};
    asm volatile("{.reg .pred p; setp.ne.b32 p, %5, 0; @p ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];}"
                 : "+r"(words.word[0]), "+r"(words.word[1]), "+r"(words.word[2]), "+r"(words.word[3])
                 : "l"(source), "r"(int(there)));
    return words;
  }
  // What the compiler shall not keep once it has read it, from any memory: words, one load each.
  template <class T>
  __device__ __forceinline__ T reread(const char* source) const {
    T value;
#pragma unroll
    for (int word = 0; word < int(sizeof(T) / 4); ++word) {
      asm volatile("ld.b32 %0, [%1];" : "=r"(reinterpret_cast<std::uint32_t*>(&value)[word]) : "l"(source + word * 4));
    }
    return value;
  }
  // Global memory that another thread block may have written.
  template <class T>
  __device__ __forceinline__ T fresh(const T* source) const {
    return __ldcg(source);
  }
  template <class T>
  __device__ __forceinline__ void store_global(char* target, const T& value) {
    *reinterpret_cast<T*>(target) = value;
  }
  template <class T>
  __device__ __forceinline__ void store_global_pair(char* target, const T& value) {
    *reinterpret_cast<T*>(target) = value;
  }
  // In PTX: nvcc takes a 16-byte store apart when its scalar tail stands beside it.
  __device__ __forceinline__ void store_global16(char* target, const Vector16& value) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(target), "r"(value.word[0]), "r"(value.word[1]),
                 "r"(value.word[2]), "r"(value.word[3])
                 : "memory");
  }

  __device__ __forceinline__ void copy_async16(int, std::int32_t offset, const char* source) {
    sm80::copy_async16(shared_ + offset, source);
  }
  __device__ __forceinline__ void commit() { sm80::commit(); }
  template <int kPending>
  __device__ __forceinline__ void wait() {
    sm80::wait<kPending>();
  }

  using Word = Lanes<std::uint32_t, 1>;
  __device__ __forceinline__ void load_matrices(const Word& row, std::int32_t offset, Word (&to)[4]) {
    sm80::load_matrices(shared_ + row.value[0] + offset, to[0].value[0], to[1].value[0], to[2].value[0],
                        to[3].value[0]);
  }
  __device__ __forceinline__ void load_transposed(const Word& row, std::int32_t offset, Word (&to)[4]) {
    sm80::load_transposed(shared_ + row.value[0] + offset, to[0].value[0], to[1].value[0], to[2].value[0],
                          to[3].value[0]);
  }
  template <Operand kOperand, bool kFresh>
  __device__ __forceinline__ void multiply(Lanes<float, 1> (&sum)[4], const Word (&a)[4], const Word* b) {
    const std::uint32_t rows[4] = {a[0].value[0], a[1].value[0], a[2].value[0], a[3].value[0]};
    const std::uint32_t pixels[2] = {b[0].value[0], b[1].value[0]};
    float sums[4] = {sum[0].value[0], sum[1].value[0], sum[2].value[0], sum[3].value[0]};
    sm80::multiply<kOperand, kFresh>(sums, rows, pixels);
#pragma unroll
    for (int k = 0; k < 4; ++k) sum[k].value[0] = sums[k];
  }

 private:
  std::uint32_t shared_;
};

class DeviceExecutor {
 public:
  using Warp = DeviceWarp;
  static constexpr int kLanes = 1;
  template <class T>
  struct PerWarp {
    using State = T;
    T state;
  };

  __device__ __forceinline__ explicit DeviceExecutor(char* memory) : warp_(memory) {}

  // Volatile, so that what follows from it can be found twice instead of being kept.
  __device__ __forceinline__ std::int32_t index() const {
    std::int32_t index;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
    return index;
  }

  template <class States, class Visit>
  __device__ __forceinline__ void each_warp(States& states, Visit visit) {
    visit(warp_, states.state);
  }

  __device__ __forceinline__ void sync(int) { __syncthreads(); }
  __device__ __forceinline__ void finish() {}

  // A small struct of 4-byte words that the kernel does not write; the same for all threads.
  template <class T>
  __device__ __forceinline__ T load(const char* source) const {
    static_assert(sizeof(T) % 4 == 0);
    T value;
#pragma unroll
    for (int word = 0; word < int(sizeof(T) / 4); ++word) {
      reinterpret_cast<std::uint32_t*>(&value)[word] = __ldg(reinterpret_cast<const std::uint32_t*>(source) + word);
    }
    return value;
  }

  // The same, not to be kept by the compiler.
  template <class T>
  __device__ __forceinline__ T reread(const char* source) const {
    return warp_.template reread<T>(source);
  }

  // Counts this thread block in; true for the last of `expected`, which then sees what all others stored.
  __device__ __forceinline__ bool arrive_last(std::uint32_t* counter, std::int32_t expected, int) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(counter, 1u) == std::uint32_t(expected - 1);
    __syncthreads();
    __threadfence();
    return last;
  }

 private:
  DeviceWarp warp_;
};

}  // namespace convt
