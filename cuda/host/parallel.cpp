#include "host/parallel.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace convt::host {
namespace {

// torch brings its own OpenMP runtime. A second one would keep a second pool of spinning threads on the same cores, so the
// runtime that is already in the process is used through its stable entry points (GNU's, which LLVM's and Intel's have too).
struct OpenMp {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  using Query = int (*)();
  Parallel parallel = nullptr;
  Query max_threads = nullptr;

  OpenMp() {
    parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    max_threads = reinterpret_cast<Query>(dlsym(RTLD_DEFAULT, "omp_get_max_threads"));
    if (!parallel || !max_threads) {
      parallel = nullptr;
      max_threads = nullptr;
    }
  }
};

// Looked up at the first call, when torch is loaded.
const OpenMp& openmp() {
  static const OpenMp runtime;
  return runtime;
}

struct Team {
  std::int64_t tasks;
  void (*body)(void*, std::int64_t, int);
  void* context;
  std::atomic<std::int64_t> next_task{0};
  std::atomic<int> next_thread{0};

  static void work(void* self) {
    Team& team = *static_cast<Team*>(self);
    const int thread = team.next_thread.fetch_add(1);
    for (std::int64_t task; (task = team.next_task.fetch_add(1)) < team.tasks;) team.body(team.context, task, thread);
  }
};

}  // namespace

int num_threads() {
  return openmp().max_threads ? std::max(1, openmp().max_threads()) : std::max(1u, std::thread::hardware_concurrency());
}

void parallel_for(std::int64_t tasks, int threads, void (*body)(void*, std::int64_t, int), void* context) {
  threads = int(std::min<std::int64_t>(threads, tasks));
  if (threads <= 1) {
    for (std::int64_t task = 0; task < tasks; ++task) body(context, task, 0);
    return;
  }
  Team team{tasks, body, context};
  if (openmp().parallel) {
    openmp().parallel(&Team::work, &team, unsigned(threads), 0);
    return;
  }
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(&Team::work, &team);
  Team::work(&team);
  for (std::thread& other : others) other.join();
}

}  // namespace convt::host
