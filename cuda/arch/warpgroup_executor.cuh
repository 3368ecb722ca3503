#pragma once

#include "arch/device_executor.cuh"
#include "arch/patch_box.hpp"
#include "arch/wgmma.cuh"

// The executor of warp-specialised kernels on a GPU: warpgroups that multiply, and others that load.
namespace convt {

// One thread's view of its warp among those that do the same: at most kThreads, who multiply.
template <int kThreads>
class GroupWarp : public DeviceWarp {
 public:
  using DeviceWarp::DeviceWarp;
  __device__ __forceinline__ std::int32_t index() const { return std::int32_t(threadIdx.x / 32 % (kThreads / 32)); }
  __device__ __forceinline__ std::int32_t thread(int) const { return std::int32_t(threadIdx.x % kThreads); }

  // The compiler may not move sums about while products are under way.
  template <int kTiles>
  __device__ __forceinline__ static void pin(Lanes<float, 1> (&sums)[kTiles][4]) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) asm volatile("" : "+f"(sums[j][k].value[0])::"memory");
    }
  }
  template <int kTiles>
  __device__ __forceinline__ void begin_products(Lanes<float, 1> (&sums)[kTiles][4]) {
    pin(sums);
    sm90::fence_products();
  }
  template <int kTiles>
  __device__ __forceinline__ void commit_products(Lanes<float, 1> (&sums)[kTiles][4]) {
    sm90::commit_products();
    pin(sums);
  }
  template <int kPending, int kTiles>
  __device__ __forceinline__ void wait_products(Lanes<float, 1> (&sums)[kTiles][4]) {
    sm90::wait_products<kPending>();
    if (kPending == 0) pin(sums);
  }
  // Operands by byte offset of their first row, and bytes from one plane to the next.
  template <Operand kOperand, int kFirst, int kTiles>
  __device__ __forceinline__ void multiply_group(Lanes<float, 1> (&sums)[kTiles][4], std::int32_t a,
                                                 std::int32_t a_pitch, std::int32_t b, std::int32_t b_pitch) {
    sm90::multiply<kOperand, kFirst>(sums, sm90::operand_at(address(a) / 16, a_pitch / 16),
                                     sm90::operand_at(address(b) / 16, b_pitch / 16));
  }
  // The same of pixels that are lines.
  template <Operand kOperand, int kFirst, int kLineBytes, int kTiles>
  __device__ __forceinline__ void multiply_boxes(Lanes<float, 1> (&sums)[kTiles][4], std::int32_t a,
                                                 std::int32_t a_pitch, std::int32_t b) {
    sm90::multiply<kOperand, kFirst>(sums, sm90::operand_at(address(a) / 16, a_pitch / 16),
                                     sm90::operand_in_lines(address(b) / 16, 1, kLineBytes));
  }
  __device__ __forceinline__ void store_transposed(const Word& row, std::int32_t offset, const Word (&from)[4]) {
    sm90::store_transposed(address(std::int32_t(row.value[0]) + offset), from[0].value[0], from[1].value[0],
                           from[2].value[0], from[3].value[0]);
  }
  __device__ __forceinline__ void publish() { sm90::fence_stores(); }
  // Bytes, or as many zeros, straight to shared memory.
  template <int kBytes>
  __device__ __forceinline__ void copy_later(int, std::int32_t offset, const char* source, bool there) {
    sm90::copy_later<kBytes>(address(offset), source, there);
  }
  // Kept in a register of its own: copies that took turns with one would wait for each other.
  __device__ __forceinline__ void settle(const char*& address) const { asm volatile("" : "+l"(address)); }
  __device__ __forceinline__ std::uint32_t load_half(std::int32_t offset) const {
    std::uint32_t half;
    asm volatile("ld.shared.u16 %0, [%1];" : "=r"(half) : "r"(address(offset)));
    return half;
  }
  // Rows in registers by an operand in lines along the reduction, or across it.
  template <Operand kOperand, bool kAcross, int kTiles>
  __device__ __forceinline__ void multiply_lines(Lanes<float, 1> (&sums)[kTiles][4], const Word (&a)[4], std::int32_t b,
                                                 std::int32_t pitch) {
    sm90::multiply_fragment<kOperand, kAcross>(sums, a, sm90::operand_in_lines(address(b) / 16, pitch / 16));
  }
};

template <int kThreads, int kLoaders = kThreads>
class WarpgroupExecutor {
  static_assert(kLoaders <= kThreads);

 public:
  using Warp = GroupWarp<kThreads>;
  static constexpr int kLanes = 1;
  template <class T>
  struct PerWarp {
    using State = T;
    T state;
  };

  __device__ __forceinline__ explicit WarpgroupExecutor(char* memory) : warp_(memory), block_(memory) {}

  __device__ __forceinline__ std::int32_t index() const { return block_.index(); }
  __device__ __forceinline__ std::int32_t count() const { return std::int32_t(gridDim.x); }
  template <class T>
  __device__ __forceinline__ T read(const char* source) const {
    return block_.template load<T>(source);
  }
  // From any memory, not to be kept by the compiler.
  template <class T>
  __device__ __forceinline__ T reread(const char* source) const {
    return block_.template reread<T>(source);
  }
  // The same for all threads, and known to be: products stand in no branch that might diverge.
  template <class T>
  __device__ __forceinline__ T load(const char* source) const {
    T value = read<T>(source);
#pragma unroll
    for (int word = 0; word < int(sizeof(T) / 4); ++word) {
      auto& own = reinterpret_cast<std::uint32_t*>(&value)[word];
      own = __shfl_sync(0xffffffffu, own, 0);
    }
    return value;
  }

  // Barriers [count] at a byte offset of shared memory, with the arrivals that make a round.
  template <class Arrivals>
  __device__ __forceinline__ void setup(std::int32_t barriers, int count, Arrivals arrivals) {
    if (threadIdx.x == 0) {
      for (int at = 0; at < count; ++at) sm90::init_barrier(warp_.address(barriers + at * 8), arrivals(at));
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
      sm90::fence_stores();
    }
    __syncthreads();
  }

  // Runs the roles side by side, with the registers that each needs: the last warp of those who load feeds. Further ones work, each for
  // itself.
  template <int kLoaderRegisters, int kConsumerRegisters, int, class Load, class Feed, class Work, class Consume>
  __device__ __forceinline__ void roles(Load load, Feed feed, Work work, Consume consume) {
    const std::uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    if (warp >= kThreads / 32) {
      sm90::shrink<kLoaderRegisters>();
      if (warp < (kThreads + kLoaders) / 32 - 1) {
        load(*this);
      } else if (kLoaders % 128 == 0 || warp == (kThreads + kLoaders) / 32 - 1) {
        feed(*this);
      } else {
        work(*this);
      }
    } else {
      sm90::grow<kConsumerRegisters>();
      consume(*this);
    }
  }

  // Without one that feeds.
  template <int kLoaderRegisters, int kConsumerRegisters, class Load, class Consume>
  __device__ __forceinline__ void roles(Load load, Consume consume) {
    if (__shfl_sync(0xffffffffu, threadIdx.x / 32, 0) >= kThreads / 32) {
      sm90::shrink<kLoaderRegisters>();
      load(*this);
    } else {
      sm90::grow<kConsumerRegisters>();
      consume(*this);
    }
  }

  // Which of those who work.
  __device__ __forceinline__ std::int32_t worker() const {
    return std::int32_t(__shfl_sync(0xffffffffu, threadIdx.x / 32, 0)) - (kThreads + kLoaders) / 32;
  }

  // Which of those who multiply.
  __device__ __forceinline__ std::int32_t warpgroup() const {
    return std::int32_t(__shfl_sync(0xffffffffu, threadIdx.x / 128, 0));
  }

  template <class States, class Visit>
  __device__ __forceinline__ void each_warp(States& states, Visit visit) {
    visit(warp_, states.state);
  }
  __device__ __forceinline__ void wait(std::int32_t barrier, std::uint32_t parity) {
    sm90::wait_round(warp_.address(barrier), parity);
  }
  // Every thread of the warpgroup, or one of every warp.
  __device__ __forceinline__ void arrive_all(std::int32_t barrier) { sm90::arrive(warp_.address(barrier)); }
  // Every thread, when its copies are there.
  __device__ __forceinline__ void arrive_copied(std::int32_t barrier) { sm90::arrive_copied(warp_.address(barrier)); }
  __device__ __forceinline__ void arrive_warps(std::int32_t barrier) {
    __syncwarp();   // what the other lanes have read, they have
    if (threadIdx.x % 32 == 0) sm90::arrive(warp_.address(barrier));
  }
  // Copies whole vectors of 16 bytes, for the whole warp; the barrier's round is complete when they are there.
  __device__ __forceinline__ void copy_bulk(std::int32_t offset, const char* source, std::int32_t bytes,
                                            std::int32_t barrier) {
    if (threadIdx.x % 32 != 0) return;
    sm90::expect_bytes(warp_.address(barrier), std::uint32_t(bytes));
    sm90::copy_bulk(warp_.address(offset), source, std::uint32_t(bytes), warp_.address(barrier));
  }
  // A patch, as a tensor copy.
  __device__ __forceinline__ void copy_box(std::int32_t offset, const PatchCopy& copy,
                                           const std::int32_t (&at)[kBoxAxes], std::int32_t bytes,
                                           std::int32_t barrier) {
    if (threadIdx.x % 32 != 0) return;
    sm90::expect_bytes(warp_.address(barrier), std::uint32_t(bytes));
    sm90::copy_box(warp_.address(offset), &copy, at, warp_.address(barrier));
  }
  // The next step's pixel offset, behind the filter of this one.
  __device__ __forceinline__ std::int32_t announced(std::int32_t offset) {
    return warp_.template load<std::int32_t>(offset);
  }
  // The compiler may not ask for it earlier.
  __device__ __forceinline__ std::int32_t arrived(std::int32_t value) {
    asm volatile("" : "+r"(value));
    return value;
  }
  __device__ __forceinline__ void sync_consumers(int) { sm90::sync_threads<kThreads>(1); }
  __device__ __forceinline__ void sync_loaders(int) { sm90::sync_threads<kLoaders>(2); }
  __device__ __forceinline__ void finish() {}

 private:
  Warp warp_;
  DeviceExecutor block_;
};

}  // namespace convt
