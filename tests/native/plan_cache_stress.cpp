// The plan cache under several threads at once, alone: compiled with a thread sanitizer by test_plan_cache.py.
#include <cstdio>
#include <thread>
#include <vector>

#include "binding/plan_cache.hpp"

namespace {

struct Plan {
  std::int64_t problem, settings;
};
using Cache = convt::binding::PlanCache<Plan>;

constexpr std::size_t kCapacity = 16;
constexpr int kThreads = 6, kCalls = 20000, kProblems = 40, kSettings = 3;

convt::binding::Key key_of(std::int64_t problem, std::int64_t settings) {
  convt::binding::Key key;
  key.add(settings);
  for (int word = 0; word < 20; ++word) key.add(problem * (word + 1));
  return key;
}

// A call as the entry makes it: look up, compute, remember unless something has changed meanwhile.
bool call(Cache& cache, std::int64_t problem) {
  const std::int64_t settings = cache.settings();
  const convt::binding::Key key = key_of(problem, settings);
  if (const Cache::Found plan = cache.find(key)) return plan->problem == problem && plan->settings == settings;
  const std::uint64_t generation = cache.generation();
  cache.insert(key, std::make_shared<Plan>(Plan{problem, settings}), generation);
  return cache.size() <= kCapacity;
}

}  // namespace

int main() {
  Cache cache(kCapacity);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int number = 0; number < kThreads; ++number) {
    threads.emplace_back([&, number] {
      std::uint64_t random = 1 + number;
      for (int i = 0; i < kCalls; ++i) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        const std::uint64_t draw = random >> 33;
        if (draw % 97 == 0) {
          cache.obey(std::int64_t(draw / 97 % kSettings));
        } else if (draw % 1009 == 1) {
          cache.clear();
        } else if (!call(cache, std::int64_t(draw % kProblems))) {
          ++wrong;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::printf("%d wrong, %zu plans\n", wrong.load(), cache.size());
  return wrong.load() == 0 && cache.size() <= kCapacity ? 0 : 1;
}
