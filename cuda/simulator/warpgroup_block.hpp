#pragma once

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "collective/gemm_params.hpp"
#include "simulator/group_host_warp.hpp"

// Plays a warp-specialised thread block on the host: its roles (loaders, feeder, each warp that works on patches, each warpgroup that
// multiplies) run in turns, one at a time. One goes on until it waits for a round that is not complete; then it is the next one's turn.
// Warps of a role wait each for itself: in order 2 the last one does nothing until nobody can go on without it, and so does the last of
// those who work on patches, or with late copies, of those who store. When all wait, the kernel would hang.
namespace convt::simulator {

// Barriers that count arrivals, and whose turn it is.
class RoundBarriers {
 public:
  // `late`: a role that gets its turn when all others wait in vain, or none.
  RoundBarriers(int roles, bool backwards, int late)
      : step_(backwards ? roles - 1 : 1),
        turn_(backwards ? roles - 1 : 0),
        late_(late),
        waits_since_(roles, -1),
        ended_(roles) {}

  void add(int arrivals) { barriers_.push_back({arrivals, arrivals, 0, {}}); }
  void arrive(int barrier, int count) {
    State& state = barriers_.at(barrier);
    state.missing -= count;
    if (state.missing < 0) throw std::runtime_error("a barrier counted more arrivals than a round has");
    if (state.missing == 0) {
      ++state.rounds;
      state.missing = state.arrivals;
    }
    ++events_;
  }

  // Called by the role whose turn it is. Returns when the last round to be completed has this parity. When nobody can go on, the role
  // catches up with what it has put off.
  template <class CatchUp>
  void wait(int role, int barrier, std::uint32_t parity, CatchUp catch_up) {
    const auto complete = [&] {
      State& state = barriers_.at(barrier);
      for (const auto& copy : std::exchange(state.copies, {})) copy();
      return (state.rounds & 1) != int(parity);
    };
    await(role, complete, catch_up);
  }
  // The roles that come together here go on when all of them have come.
  void meet(int role, int expected) {
    const std::int64_t round = met_ / expected;
    ++met_;
    ++events_;
    await(role, [&] { return met_ / expected > round; }, [] {});
  }
  // A copy that is made when somebody waits for it.
  void put_off(int barrier, std::function<void()> copy) {
    barriers_.at(barrier).copies.push_back(std::move(copy));
    ++events_;   // who waits for it may go on
  }
  void begin(int role) {
    std::unique_lock lock(mutex_);
    turned_.wait(lock, [&] { return turn_ == role; });
  }
  // The late role's arrival may be what others wait for.
  void rest(int role) {
    if (role != late_) return;
    std::unique_lock lock(mutex_);
    pass_turn();
    turned_.wait(lock, [&] { return turn_ == role || stuck_; });
    if (stuck_) throw std::runtime_error(kStuck);
  }
  void end(int role) {
    std::unique_lock lock(mutex_);
    ended_[role] = true;
    pass_turn();
  }

 private:
  struct State {
    int arrivals, missing, rounds;
    std::vector<std::function<void()>> copies;
  };
  template <class Done, class CatchUp>
  void await(int role, Done done, CatchUp catch_up) {
    std::unique_lock lock(mutex_);
    std::int64_t seen = -1;   // events when all others were last let go on
    while (!done()) {
      if (seen != events_) {
        seen = events_;
        pass_turn();
        turned_.wait(lock, [&] { return turn_ == role || stuck_; });
        if (stuck_) throw std::runtime_error(kStuck);
        continue;
      }
      catch_up();
      if (seen != events_) continue;
      waits_since_[role] = events_;
      for (std::size_t other = 0; other < ended_.size(); ++other) {
        if (!ended_[other] && waits_since_[other] != events_) break;
        stuck_ = stuck_ || other + 1 == ended_.size();
      }
      pass_turn();
      if (!stuck_) turned_.wait(lock, [&] { return turn_ == role; });
      if (stuck_) throw std::runtime_error(kStuck);
    }
    waits_since_[role] = -1;
  }
  void pass_turn() {
    const int roles = int(ended_.size());
    for (int tried = 0; tried < roles; ++tried) {
      turn_ = (turn_ + step_) % roles;
      if (!ended_[turn_] && (turn_ != late_ || others_wait())) break;
    }
    turned_.notify_all();
  }
  bool others_wait() const {
    for (int role = 0; role < int(ended_.size()); ++role) {
      if (role != late_ && !ended_[role] && waits_since_[role] != events_) return false;
    }
    return true;
  }

  static constexpr const char* kStuck = "the warpgroups wait for each other";
  std::vector<State> barriers_;
  std::mutex mutex_;
  std::condition_variable turned_;
  int step_, turn_, late_;
  std::int64_t events_ = 0, met_ = 0;
  std::vector<std::int64_t> waits_since_;   // the events when a role began to wait in vain
  std::vector<bool> ended_;
  bool stuck_ = false;
};

// What all roles of a thread block share.
struct SharedBlock {
  std::int32_t index, count;
  InputMemory input;
  BlockMemory memory;
  RoundBarriers barriers;
  std::int32_t first_barrier = 0;
};

// The warps of one role; threads are numbered from `first` warps on.
class HostGroup {
 public:
  using Warp = GroupHostWarp;
  static constexpr int kLanes = 32;
  // Kept by those who have still to use it.
  template <class T>
  struct PerWarp {
    using State = T;
    std::shared_ptr<std::vector<T>> state;
  };

  HostGroup(SharedBlock& block, int role, int first, int warps, int multiplying)
      : block_(block), role_(role), multiplying_(multiplying), queues_(warps) {
    for (int warp = 0; warp < warps; ++warp) {
      warps_.emplace_back(&block.memory, first + warp);
      if (role == kLoaders) warps_.back().read_only(block.input);
    }
  }

  std::int32_t index() const { return block_.index; }
  std::int32_t count() const { return block_.count; }
  template <class T>
  T load(const char* source) const {
    T value;
    std::memcpy(&value, source, sizeof(T));
    return value;
  }
  template <class T>
  T read(const char* source) const {
    return load<T>(source);
  }
  template <class T>
  T reread(const char* source) const {
    return load<T>(source);
  }

  template <class States, class Visit>
  void each_warp(States& states, Visit visit) {
    using State = typename States::State;
    if (!states.state) states.state = std::make_shared<std::vector<State>>(warps_.size());
    for (std::size_t warp = 0; warp < warps_.size(); ++warp) {
      queues_[warp].push_back(
          {[this, kept = states.state, visit, warp]() mutable { visit(warps_[warp], (*kept)[warp]); }, false});
    }
  }
  void wait(std::int32_t barrier, std::uint32_t parity) {
    go_on();
    if (skips(kWaits + number(barrier))) return;
    block_.barriers.wait(role_, number(barrier), parity, [this] { catch_up(); });
  }
  void arrive_all(std::int32_t barrier) { arrive(barrier, 32); }
  void arrive_warps(std::int32_t barrier) { arrive(barrier, 1); }
  void arrive_copied(std::int32_t barrier) {
    for (std::size_t warp = 0; warp < warps_.size(); ++warp) {
      queues_[warp].push_back({[this, warp, at = number(barrier)] {
                                 const auto copy = [&block = block_, copies = warps_[warp].take_copies(), at] {
                                   for (const auto& made : copies) made();
                                   block.barriers.arrive(at, 32);
                                 };
                                 if (block_.memory.schedule.late_copies) {
                                   block_.barriers.put_off(at, copy);
                                 } else {
                                   copy();
                                 }
                               },
                               true});
    }
    go_on();
  }
  void copy_bulk(std::int32_t offset, const char* source, std::int32_t bytes, std::int32_t barrier) {
    const auto copy = [&block = block_, offset, source, bytes, at = number(barrier)] {
      for (std::int32_t byte = 0; byte < bytes; byte += 16) {
        std::memcpy(block.memory.at(offset + byte, 16), source + byte, 16);
      }
      block.barriers.arrive(at, 1);
    };
    if (block_.memory.schedule.late_copies) {
      block_.barriers.put_off(number(barrier), copy);
    } else {
      copy();
    }
  }
  // Every line of the box, or row, zeros where it lies outside of the tensor.
  void copy_box(std::int32_t offset, const PatchCopy& told, const std::int32_t (&first)[kBoxAxes], std::int32_t bytes,
                std::int32_t barrier) {
    const PatchBox* told_box;
    std::memcpy(&told_box, told.bytes, sizeof(told_box));
    const PatchBox box = *told_box;
    if (bytes != box.bytes()) throw std::runtime_error("a tensor copy has other bytes than its barrier expects");
    if (offset % (box.lines ? kBoxAlignment : kRowAlignment) != 0) {
      throw std::runtime_error("a tensor copy is not aligned in shared memory");
    }
    if (first[0] * box.stride[0] % 16 != 0) throw std::runtime_error("a tensor copy begins at no multiple of 16 bytes");
    if (box.line_bytes() % 16 != 0) throw std::runtime_error("a row of a tensor copy is no multiple of 16 bytes");
    for (int axis = 1; axis < kBoxAxes; ++axis) {
      if (box.stride[axis] % 16 != 0) throw std::runtime_error("a stride of a tensor copy is no multiple of 16 bytes");
    }
    std::array<std::int32_t, kBoxAxes> at;
    std::copy(std::begin(first), std::end(first), at.begin());
    // Made when its role may have ended.
    const auto copy = [&block = block_, box, at, offset, barrier = number(barrier)] {
      for (std::int32_t line = 0; line < box.bytes() / box.line_bytes(); ++line)
        copy_line(block, box, at, line, offset);
      block.barriers.arrive(barrier, 1);
    };
    if (block_.memory.schedule.late_copies) {
      block_.barriers.put_off(number(barrier), copy);
    } else {
      copy();
    }
  }
  std::int32_t announced(std::int32_t offset) {
    go_on();
    return warps_[0].template load<std::int32_t>(offset);
  }
  std::int32_t arrived(std::int32_t value) { return value; }
  void sync_consumers(int barrier) {
    if (skips(barrier)) return;
    flush();
    block_.barriers.meet(role_, multiplying_);
  }

  void sync_loaders(int barrier) {   // they are one role
    if (!skips(barrier)) flush();
  }

  // Runs what the warps have still to do.
  void flush() { run(int(warps_.size())); }
  void finish() { go_on(); }

  std::int32_t worker() const { return role_ - kFirstWorker; }
  std::int32_t warpgroup() const { return warps_.front().index() / 4; }
  static constexpr int kLoaders = 0, kFeeder = 1, kFirstWorker = 2;   // roles; those who multiply are the last
  static constexpr int kWaits = 8;   // schedules name barriers between roles from here

 private:
  static void copy_line(SharedBlock& block, const PatchBox& box, const std::array<std::int32_t, kBoxAxes>& first,
                        std::int32_t line, std::int32_t offset) {
    const char* source = box.base;
    bool there = true;
    for (std::int32_t axis = 1, rest = line; axis < kBoxAxes; rest /= box.count[axis++]) {
      const std::int64_t at = first[axis] + std::int64_t(rest % box.count[axis]) * box.step[axis];
      there = there && at >= 0 && at < box.extent[axis];
      source += at * box.stride[axis];
    }
    const std::int32_t bytes = std::int32_t(box.stride[0]);
    for (std::int32_t at = 0; at < box.count[0]; ++at) {
      const std::int64_t element = first[0] + at;
      const std::int32_t place = offset + line * box.line_bytes() + at * bytes;
      char* const to = block.memory.at(box.lines ? sm90::in_its_line(place, box.line_bytes()) : place, bytes);
      if (there && element >= 0 && element < box.extent[0]) {
        const char* const from = source + element * bytes;
        if (from < block.input.begin || from + bytes > block.input.end) {
          throw std::out_of_range("global memory: a tensor copy reads outside of the input");
        }
        std::memcpy(to, from, bytes);
      } else {
        std::memset(to, 0, bytes);
      }
    }
  }
  struct Work {
    std::function<void()> run;
    bool arrives;   // at a barrier between roles
  };
  int number(std::int32_t barrier) const { return (barrier - block_.first_barrier) / 8; }
  bool skips(int barrier) {
    ++block_.memory.counters->barriers;
    return barrier == block_.memory.schedule.skipped_barrier;
  }
  // Of every warp, when it comes there.
  void arrive(std::int32_t barrier, int count) {
    for (auto& queue : queues_) {
      queue.push_back({[this, barrier, count] { block_.barriers.arrive(number(barrier), count); }, true});
    }
    go_on();
    block_.barriers.rest(role_);
  }
  // All but those who are late.
  void go_on() {
    const int warps = int(warps_.size());
    run(block_.memory.schedule.order == 2 && warps > 1 ? warps - 1 : warps);
  }
  // The late one, as far as others may be waiting for it.
  void catch_up() {
    auto& queue = queues_.back();
    const auto first = std::find_if(queue.begin(), queue.end(), [](const Work& work) { return work.arrives; });
    if (first == queue.end()) return;
    for (auto at = queue.begin(); at <= first; ++at) at->run();
    queue.erase(queue.begin(), first + 1);
  }
  void run(int warps) {
    for (int turn = 0; turn < warps; ++turn) {
      auto& queue = queues_[block_.memory.schedule.order == 1 ? warps - 1 - turn : turn];
      for (Work& work : queue) work.run();
      queue.clear();
    }
  }

  SharedBlock& block_;
  int role_, multiplying_;
  std::vector<GroupHostWarp> warps_;
  std::vector<std::vector<Work>> queues_;
};

// `groups` warpgroups multiply, `loading` warps load, and in some kernels one more feeds, some work on patches and others store.
class WarpgroupBlock {
 public:
  WarpgroupBlock(std::int32_t index, std::int32_t count, int groups, int loading, int on_patches, int storers,
                 const InputMemory& input, std::int64_t shared_bytes, const Schedule& schedule, Counters& counters)
      : groups_(groups),
        loading_(loading),
        workers_(on_patches + storers),
        block_{index,
               count,
               input,
               {std::vector<char>(shared_bytes, char(0xff)), schedule, &counters},   // NaN in every type
               RoundBarriers(first_multiplying() + groups, schedule.order == 1,
                             schedule.order == 2 && workers_ > 0
                                 ? HostGroup::kFirstWorker + (schedule.late_copies ? workers_ : on_patches) - 1
                                 : -1)} {}

  template <class Arrivals>
  void setup(std::int32_t barriers, int count, Arrivals arrivals) {
    block_.first_barrier = barriers;
    for (int at = 0; at < count; ++at) block_.barriers.add(arrivals(at));
  }

  template <int, int, int kWorkers, class Load, class Feed, class Work, class Consume>
  void roles(Load load, Feed feed, Work work, Consume consume) {
    if (kWorkers != workers_) throw std::logic_error("the kernel has other workers than its thread block");
    std::vector<std::exception_ptr> failed(first_multiplying() + groups_);
    const auto play = [&](int role, int first, int warps, auto& text) {
      block_.barriers.begin(role);
      try {
        HostGroup group(block_, role, first, warps, groups_);
        text(group);
        group.flush();
      } catch (...) {
        failed[role] = std::current_exception();
      }
      block_.barriers.end(role);
    };
    std::vector<std::thread> threads;
    threads.emplace_back([&] { play(HostGroup::kLoaders, 0, loading_, load); });
    threads.emplace_back([&] { play(HostGroup::kFeeder, loading_, 1, feed); });
    for (int worker = 0; worker < workers_; ++worker) {
      threads.emplace_back([&, worker] { play(HostGroup::kFirstWorker + worker, loading_ + 1 + worker, 1, work); });
    }
    for (int group = 0; group < groups_; ++group) {
      threads.emplace_back([&, group] { play(first_multiplying() + group, 4 * group, 4, consume); });
    }
    for (std::thread& thread : threads) thread.join();
    for (const auto& failure : failed) {
      if (failure) std::rethrow_exception(failure);
    }
  }
  template <int kLoaders, int kConsumers, class Load, class Consume>
  void roles(Load load, Consume consume) {
    const auto nothing = [](HostGroup&) {};
    roles<kLoaders, kConsumers, 0>(load, nothing, nothing, consume);
  }

 private:
  int first_multiplying() const { return HostGroup::kFirstWorker + workers_; }

  int groups_, loading_, workers_;
  SharedBlock block_;
};

}  // namespace convt::simulator
