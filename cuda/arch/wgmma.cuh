#pragma once

#include <cstdint>

#include "arch/descriptor.hpp"
#include "arch/lanes.hpp"
#include "config/tile_config.hpp"

// Instructions of sm_90a: products of a warpgroup whose operands lie in shared memory, barriers that count bytes, bulk copies.
namespace convt::sm90 {

__device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// sums[first + j][k] += rows of a times pixels of b, over two planes.
template <Operand kOperand, int kFirst, int kTiles>
__device__ __forceinline__ void multiply(Lanes<float, 1> (&sums)[kTiles][4], std::uint64_t a, std::uint64_t b) {
#define CONVT_SUM(j, k) "+f"(sums[kFirst + j][k].value[0])
#define CONVT_SUMS(j) CONVT_SUM(j, 0), CONVT_SUM(j, 1), CONVT_SUM(j, 2), CONVT_SUM(j, 3)
#define CONVT_WGMMA(shape, transposed)                                                                       \
  asm volatile("wgmma.mma_async.sync.aligned." shape                                                         \
               " {"                                                                                          \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                      \
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "            \
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "            \
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"              \
               "}, %64, %65, 1, 1, 1" transposed ";"                                                         \
               : CONVT_SUMS(0), CONVT_SUMS(1), CONVT_SUMS(2), CONVT_SUMS(3), CONVT_SUMS(4), CONVT_SUMS(5),   \
                 CONVT_SUMS(6), CONVT_SUMS(7), CONVT_SUMS(8), CONVT_SUMS(9), CONVT_SUMS(10), CONVT_SUMS(11), \
                 CONVT_SUMS(12), CONVT_SUMS(13), CONVT_SUMS(14), CONVT_SUMS(15)                              \
               : "l"(a), "l"(b))
  if constexpr (is_float32(kOperand)) {
    CONVT_WGMMA("m64n128k8.f32.tf32.tf32", "");
  } else if constexpr (kOperand == Operand::bfloat16) {
    CONVT_WGMMA("m64n128k16.f32.bf16.bf16", ", 0, 0");
  } else {
    CONVT_WGMMA("m64n128k16.f32.f16.f16", ", 0, 0");
  }
#undef CONVT_WGMMA
#undef CONVT_SUMS
#undef CONVT_SUM
}

// sums[j][k] += rows in registers times columns in shared memory: 64 of them per warpgroup, kTiles times eight. Transposed: columns
// lie side by side.
template <Operand kOperand, bool kTransposed, int kTiles>
__device__ __forceinline__ void multiply_fragment(Lanes<float, 1> (&sums)[kTiles][4],
                                                  const Lanes<std::uint32_t, 1> (&a)[4], std::uint64_t b) {
  static_assert(kTiles == 8 || kTiles == 16);
#define CONVT_SUM(j, k) "+f"(sums[j][k].value[0])
#define CONVT_SUMS(j) CONVT_SUM(j, 0), CONVT_SUM(j, 1), CONVT_SUM(j, 2), CONVT_SUM(j, 3)
#define CONVT_HALF \
  CONVT_SUMS(0), CONVT_SUMS(1), CONVT_SUMS(2), CONVT_SUMS(3), CONVT_SUMS(4), CONVT_SUMS(5), CONVT_SUMS(6), CONVT_SUMS(7)
#define CONVT_OTHER_HALF                                                                                        \
  CONVT_SUMS(8), CONVT_SUMS(9), CONVT_SUMS(10), CONVT_SUMS(11), CONVT_SUMS(12), CONVT_SUMS(13), CONVT_SUMS(14), \
      CONVT_SUMS(15)
#define CONVT_OPERANDS "r"(a[0].value[0]), "r"(a[1].value[0]), "r"(a[2].value[0]), "r"(a[3].value[0]), "l"(b)
#define CONVT_WGMMA(type, transposed)                                                               \
  if constexpr (kTiles == 16) {                                                                     \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128" type                                        \
                 " {"                                                                               \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"   \
                 "}, {%64, %65, %66, %67}, %68, 1, 1, 1" transposed ";"                             \
                 : CONVT_HALF, CONVT_OTHER_HALF                                                     \
                 : CONVT_OPERANDS);                                                                 \
  } else {                                                                                          \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64" type                                         \
                 " {"                                                                               \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"   \
                 "}, {%32, %33, %34, %35}, %36, 1, 1, 1" transposed ";"                             \
                 : CONVT_HALF                                                                       \
                 : CONVT_OPERANDS);                                                                 \
  }
  if constexpr (is_float32(kOperand)) {
    static_assert(!kTransposed);
    CONVT_WGMMA("k8.f32.tf32.tf32", "")
  } else if constexpr (kOperand == Operand::bfloat16 && kTransposed) {
    CONVT_WGMMA("k16.f32.bf16.bf16", ", 1")
  } else if constexpr (kOperand == Operand::bfloat16) {
    CONVT_WGMMA("k16.f32.bf16.bf16", ", 0")
  } else if constexpr (kTransposed) {
    CONVT_WGMMA("k16.f32.f16.f16", ", 1")
  } else {
    CONVT_WGMMA("k16.f32.f16.f16", ", 0")
  }
#undef CONVT_WGMMA
#undef CONVT_OPERANDS
#undef CONVT_OTHER_HALF
#undef CONVT_HALF
#undef CONVT_SUMS
#undef CONVT_SUM
}

// Four matrices of 8 by 8 elements of 16 bits, each transposed: rows of memory hold columns of what the threads have.
__device__ __forceinline__ void store_transposed(std::uint32_t shared, std::uint32_t a, std::uint32_t b,
                                                 std::uint32_t c, std::uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(a), "r"(b),
               "r"(c), "r"(d)
               : "memory");
}

// Barriers in shared memory, by address.
__device__ __forceinline__ void init_barrier(std::uint32_t barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void expect_bytes(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Returns when the barrier's round of the given parity is complete.
__device__ __forceinline__ void wait_round(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void copy_bulk(std::uint32_t shared, const void* global, std::uint32_t bytes,
                                          std::uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
               "l"(global), "r"(bytes), "r"(barrier)
               : "memory");
}
// The box of a tensor whose first element is at these coordinates, innermost first. Of the innermost they name a multiple of 16 bytes:
// anything else is an illegal instruction.
__device__ __forceinline__ void copy_box(std::uint32_t shared, const void* tensor, const std::int32_t (&at)[5],
                                         std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], "
      "[%2];" ::"r"(shared),
      "l"(tensor), "r"(barrier), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
      : "memory");
}
// kBytes bytes, or as many zeros.
template <int kBytes>
__device__ __forceinline__ void copy_later(std::uint32_t shared, const void* global, bool there) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(there ? 16 : 0)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(global), "n"(kBytes),
                 "r"(there ? kBytes : 0)
                 : "memory");
  }
}
// Counts as an arrival when all copies of this thread so far have come.
__device__ __forceinline__ void arrive_copied(std::uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
// What this thread stored to shared memory is seen by products and bulk copies.
__device__ __forceinline__ void fence_stores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <int kRegisters>
__device__ __forceinline__ void shrink() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void grow() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kThreads>
__device__ __forceinline__ void sync_threads(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

}  // namespace convt::sm90
