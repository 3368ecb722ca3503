#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

// Plain C++: tests/native compiles it alone, under a thread sanitizer.
namespace convt::binding {

// Everything that a plan depends on, as words.
class Key {
 public:
  void add(std::int64_t word) { words_[count_++] = word; }
  template <class Words>
  void add(const Words* words, int count) {
    for (int i = 0; i < count; ++i) add(words[i]);
  }
  bool operator==(const Key& other) const {
    return count_ == other.count_ && std::memcmp(words_.data(), other.words_.data(), count_ * sizeof(words_[0])) == 0;
  }
  std::size_t hash() const {
    std::uint64_t hash = 0x9e3779b97f4a7c15u;
    for (std::size_t at = 0; at < count_; ++at) {
      hash = (hash ^ std::uint64_t(words_[at])) * 0x2127599bf4325c37u;
      hash ^= hash >> 29;
    }
    return hash;
  }

 private:
  // 8 of the call, 4 lists of 3, three tensors with a word, 5 sizes and 5 strides each, the bias' dtype and stride.
  std::array<std::int64_t, 8 + 12 + 33 + 2> words_;
  std::size_t count_ = 0;
};
struct KeyHash {
  std::size_t operator()(const Key& key) const { return key.hash(); }
};

// Bounded, and safe to use from several threads with or without a lock around Python. A loop over one layer finds its
// plan at the first look. Plans are shared: one that is evicted lives until the calls that found it have returned.
template <class Plan>
class PlanCache {
 public:
  using Found = std::shared_ptr<const Plan>;

  explicit PlanCache(std::size_t capacity) : capacity_(capacity) {}

  Found find(const Key& key) {
    const std::lock_guard lock(mutex_);
    if (last_plan_ && last_key_ == key) return last_plan_;
    const auto found = plans_.find(key);
    if (found == plans_.end()) return nullptr;
    last_key_ = key;
    return last_plan_ = found->second;
  }

  // The settings that hold now; a part of every key.
  std::int64_t settings() const { return settings_.load(std::memory_order_acquire); }
  // Counts changes of settings and clears: a plan that was made across one may mix what held before and after.
  std::uint64_t generation() const { return generation_.load(std::memory_order_acquire); }

  void insert(const Key& key, Found plan, std::uint64_t generation) {
    Plans dropped;   // destroyed without the lock: what plans hold may run any code when it goes
    const std::lock_guard lock(mutex_);
    if (generation != generation_.load(std::memory_order_relaxed)) return;
    if (plans_.size() >= capacity_) dropped.swap(plans_);
    plans_.insert_or_assign(key, std::move(plan));
  }

  void obey(std::int64_t settings) {
    const std::lock_guard lock(mutex_);
    generation_.fetch_add(1, std::memory_order_release);
    settings_.store(settings, std::memory_order_release);
  }

  void clear() {
    Plans dropped;
    Found last;
    const std::lock_guard lock(mutex_);
    generation_.fetch_add(1, std::memory_order_release);
    last.swap(last_plan_);
    dropped.swap(plans_);
  }

  std::size_t size() {
    const std::lock_guard lock(mutex_);
    return plans_.size();
  }
  std::size_t capacity() const { return capacity_; }

 private:
  using Plans = std::unordered_map<Key, Found, KeyHash>;

  const std::size_t capacity_;
  std::mutex mutex_;
  Plans plans_;
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<std::int64_t> settings_{0};
  Key last_key_;
  Found last_plan_;
};

}  // namespace convt::binding
