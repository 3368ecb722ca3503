#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "host/operators.hpp"

namespace convt::binding {

// How a call is answered once its problem is known. `recorded`: gradients are wanted.
enum class Route : int { python, native, aten, aten_small };

// Everything that a plan depends on, as words: dtype and rank, threads, groups, arguments, sizes and strides.
struct Key {
  std::array<std::int64_t, 37> words{};
  bool operator==(const Key&) const = default;
};
struct KeyHash {
  std::size_t operator()(const Key& key) const {
    std::uint64_t hash = 0x9e3779b97f4a7c15u;
    for (const std::int64_t word : key.words) {
      hash = (hash ^ std::uint64_t(word)) * 0x2127599bf4325c37u;
      hash ^= hash >> 29;
    }
    return hash;
  }
};

struct Plan {
  Route plain = Route::python, recorded = Route::python;
  nanobind::object output_size;                          // the tuple for new_empty
  std::unique_ptr<host::PreparedForward> forward;  // when plain is native
  std::array<nanobind::object, 8>
      small;  // slow_conv_transposeNd's arguments but the tensors, when recorded is aten_small
  std::size_t small_count = 0;      // trailing defaults are left out: parsing them costs more than the product
};

// Bounded and safe to use from several threads. A loop over one layer finds its plan at the first look.
class PlanCache {
 public:
  std::shared_ptr<const Plan> find(const Key& key) {
    const std::lock_guard lock(mutex_);
    if (last_plan_ && last_key_ == key) return last_plan_;
    const auto found = plans_.find(key);
    if (found == plans_.end()) return nullptr;
    last_key_ = key;
    return last_plan_ = found->second;
  }
  // A plan that was made before the last clear() belongs to settings that hold no more, and is dropped.
  std::uint64_t generation() {
    const std::lock_guard lock(mutex_);
    return generation_;
  }
  void insert(const Key& key, std::shared_ptr<const Plan> plan, std::uint64_t generation) {
    const std::lock_guard lock(mutex_);
    if (generation != generation_) return;
    if (plans_.size() >= kCapacity) plans_.clear();
    plans_[key] = std::move(plan);
  }
  void clear() {
    const std::lock_guard lock(mutex_);
    ++generation_;
    last_plan_ = nullptr;
    plans_.clear();
  }

 private:
  static constexpr std::size_t kCapacity = 1024;
  std::mutex mutex_;
  std::unordered_map<Key, std::shared_ptr<const Plan>, KeyHash> plans_;
  std::uint64_t generation_ = 0;
  Key last_key_;
  std::shared_ptr<const Plan> last_plan_;
};

}  // namespace convt::binding
