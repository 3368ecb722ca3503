#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "arch/half.hpp"
#include "arch/lanes.hpp"
#include "collective/gemm_params.hpp"

// Plays a thread block on the host: warp after warp between barriers, in any order of the warps, asynchronous copies as early or as
// late as the program allows. What only works by luck of timing fails here. It cannot see races within a warp.
namespace convt::simulator {

struct Schedule {
  int order = 0;               // 0: warps ascending, 1: descending, 2: odd ones first, or one of a warpgroup late
  bool late_copies = false;    // asynchronous copies happen when they are waited for, not when issued
  int skipped_barrier = -1;    // a barrier to leave out, to see that it is needed
};

struct Counters {
  std::int64_t matrix_loads = 0;        // 8x8 matrices of ldmatrix
  std::int64_t bank_conflicts = 0;      // cycles beyond one per matrix
  std::int64_t products = 0;            // mma.sync
  std::int64_t barriers = 0;
};

struct BlockMemory {
  std::vector<char> shared;
  Schedule schedule;
  Counters* counters;

  char* at(std::int64_t offset, std::int64_t bytes) {
    if (offset < 0 || offset + bytes > std::int64_t(shared.size())) {
      throw std::out_of_range("shared memory: " + std::to_string(bytes) + " bytes at " + std::to_string(offset) +
                              " of " + std::to_string(shared.size()));
    }
    if (offset % bytes != 0) throw std::runtime_error("shared memory: misaligned access");
    return shared.data() + offset;
  }
};

class HostWarp {
 public:
  HostWarp(BlockMemory* memory, int index) : memory_(memory), index_(index) {}

  std::int32_t index() const { return index_; }
  std::int32_t thread(int lane) const { return index_ * 32 + lane; }

  void sync() {}   // lanes take turns
  template <class Visit>
  void lanes(Visit visit) {
    for (int lane = 0; lane < 32; ++lane) visit(lane);
  }

  template <class T>
  T load(std::int32_t offset) const {
    T value;
    std::memcpy(&value, memory_->at(offset, sizeof(T)), sizeof(T));
    return value;
  }
  template <class T>
  void store(std::int32_t offset, const T& value) {
    std::memcpy(memory_->at(offset, sizeof(T)), &value, sizeof(T));
  }
  template <class T>
  T global(const char* source) const {
    aligned(source, sizeof(T));
    T value;
    std::memcpy(&value, source, sizeof(T));
    return value;
  }
  template <int kBytes>
  std::uint32_t word_if(bool there, const char* source) const {
    return there ? global<std::conditional_t<kBytes == 4, std::uint32_t, std::uint16_t>>(source) : 0;
  }
  Vector16 vector_if(bool there, const char* source) const { return there ? global<Vector16>(source) : Vector16{}; }
  template <class T>
  T reread(const char* source) const {
    T value;
    std::memcpy(&value, source, sizeof value);
    return value;
  }
  template <class T>
  T fresh(const T* source) const {
    return *source;
  }
  template <class T>
  void store_global(char* target, const T& value) {
    aligned(target, sizeof(T));
    std::memcpy(target, &value, sizeof(T));
  }
  template <class T>
  void store_global_pair(char* target, const T& value) {
    aligned(target, sizeof(T));
    store_global(target, value);
  }
  void store_global16(char* target, const Vector16& value) { store_global(target, value); }

  void copy_async16(int, std::int32_t offset, const char* source) {
    aligned(source, 16);
    if (!memory_->schedule.late_copies) {
      std::memcpy(memory_->at(offset, 16), source, 16);
    } else {
      pending_.push_back({offset, source});
    }
  }
  void commit() {
    committed_.push_back(std::move(pending_));
    pending_.clear();
  }
  template <int kPending>
  void wait() {
    while (int(committed_.size()) > kPending) {
      for (const Copy& copy : committed_.front()) std::memcpy(memory_->at(copy.offset, 16), copy.source, 16);
      committed_.pop_front();
    }
  }

  using Word = Lanes<std::uint32_t, 32>;
  void load_matrices(const Word& row, std::int32_t offset, Word (&to)[4]) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      std::array<int, 8> banks{};
      for (int at = 0; at < 8; ++at) {
        const std::int32_t address = std::int32_t(row[matrix * 8 + at]) + offset;
        ++banks[address / 16 % 8];
        const char* source = memory_->at(address, 16);
        for (int word = 0; word < 4; ++word) std::memcpy(&to[matrix][at * 4 + word], source + 4 * word, 4);
      }
      ++memory_->counters->matrix_loads;
      memory_->counters->bank_conflicts += *std::max_element(banks.begin(), banks.end()) - 1;
    }
  }

  void load_transposed(const Word& row, std::int32_t offset, Word (&to)[4]) {
    Word rows[4];
    load_matrices(row, offset, rows);
    const auto half = [](std::uint32_t word, int which) { return which ? word >> 16 : word & 0xffffu; };
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int lane = 0; lane < 32; ++lane) {
        const int column = lane / 4, first = lane % 4 * 2;   // elements [first, column] and [first + 1, column]
        const std::uint32_t top = rows[matrix][first * 4 + column / 2],
                            bottom = rows[matrix][first * 4 + 4 + column / 2];
        to[matrix][lane] = half(top, column % 2) | half(bottom, column % 2) << 16;
      }
    }
  }

  template <Operand kOperand, bool kFresh>
  void multiply(Lanes<float, 32> (&sum)[4], const Word (&a)[4], const Word* b) {
    constexpr int depth = is_float32(kOperand) ? 8 : 16;
    float rows[16][depth], pixels[8][depth];
    for (int lane = 0; lane < 32; ++lane) {
      const int at = lane / 4, column = lane % 4;
      for (int part = 0; part < 4; ++part) unpack<kOperand>(rows[at + part % 2 * 8], column, part / 2, a[part][lane]);
      for (int part = 0; part < 2; ++part) unpack<kOperand>(pixels[at], column, part, b[part][lane]);
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int k = 0; k < 4; ++k) {
        const float* row = rows[lane / 4 + k / 2 * 8];
        const float* pixel = pixels[lane % 4 * 2 + k % 2];
        double total = kFresh ? 0.0 : double(sum[k][lane]);
        for (int at = 0; at < depth; ++at) total += double(row[at]) * double(pixel[at]);
        sum[k][lane] = float(total);
      }
    }
    ++memory_->counters->products;
  }

 protected:
  // Where the elements of a fragment register lie along the reduction: `part` is the 16-byte plane.
  template <Operand kOperand>
  static void unpack(float* to, int column, int part, std::uint32_t word) {
    if constexpr (is_float32(kOperand)) {
      to[part * 4 + column] = as_float(word & kTf32Mask);   // the tensor core looks at no more
    } else {
      to[part * 8 + 2 * column] = widen<kOperand>(std::uint16_t(word));
      to[part * 8 + 2 * column + 1] = widen<kOperand>(std::uint16_t(word >> 16));
    }
  }

 private:
  struct Copy {
    std::int32_t offset;
    const char* source;
  };

  static void aligned(const void* address, std::size_t bytes) {
    if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) {
      throw std::runtime_error("global memory: misaligned access of " + std::to_string(bytes) + " bytes");
    }
  }

  BlockMemory* memory_;
  int index_;
  std::vector<Copy> pending_;
  std::deque<std::vector<Copy>> committed_;
};

class BlockExecutor {
 public:
  using Warp = HostWarp;
  static constexpr int kLanes = 32;
  template <class T>
  struct PerWarp {
    using State = T;
    std::vector<T> state;
  };

  BlockExecutor(std::int32_t index, int warps, std::int64_t shared_bytes, const Schedule& schedule, Counters& counters)
      : index_(index), queues_(warps) {
    memory_.shared.assign(shared_bytes, char(0xff));   // NaN in every type
    memory_.schedule = schedule;
    memory_.counters = &counters;
    for (int warp = 0; warp < warps; ++warp) warps_.emplace_back(&memory_, warp);
  }

  std::int32_t index() const { return index_; }

  template <class States, class Visit>
  void each_warp(States& states, Visit visit) {
    if (states.state.empty()) states.state.resize(warps_.size());
    for (std::size_t warp = 0; warp < warps_.size(); ++warp) {
      queues_[warp].push_back([this, &states, visit, warp]() mutable { visit(warps_[warp], states.state[warp]); });
    }
  }

  void sync(int barrier) {
    ++memory_.counters->barriers;
    if (barrier != memory_.schedule.skipped_barrier) finish();
  }

  // Runs what the warps have still to do.
  void finish() {
    const int count = int(warps_.size());
    for (int turn = 0; turn < count; ++turn) {
      int warp = turn;
      if (memory_.schedule.order == 1) warp = count - 1 - turn;
      if (memory_.schedule.order == 2) warp = turn < count / 2 ? 2 * turn + 1 : 2 * (turn - count / 2);
      for (auto& work : queues_[warp]) work();
      queues_[warp].clear();
    }
  }

  template <class T>
  T load(const char* source) const {
    T value;
    std::memcpy(&value, source, sizeof(T));
    return value;
  }

  template <class T>
  T reread(const char* source) const {
    return load<T>(source);
  }

  bool arrive_last(std::uint32_t* counter, std::int32_t expected, int barrier) {
    sync(barrier);
    return ++*counter == std::uint32_t(expected);
  }

 private:
  std::int32_t index_;
  BlockMemory memory_;
  std::vector<HostWarp> warps_;
  std::vector<std::vector<std::function<void()>>> queues_;
};

}  // namespace convt::simulator
