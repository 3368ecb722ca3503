#pragma once

#include <cstdint>
#include <type_traits>

namespace convt::host {

// The number of threads torch uses: both share one OpenMP runtime, so torch.set_num_threads governs both.
int num_threads();

// Calls body(context, task, thread) for every task in [0, tasks), each once, on up to `threads` threads. Which thread takes
// which task is left open: tasks must not depend on it. The body must not throw.
void parallel_for(std::int64_t tasks, int threads, void (*body)(void* context, std::int64_t task, int thread),
                  void* context);

template <class Body>
void parallel_for(std::int64_t tasks, int threads, Body&& body) {
  using Function = std::remove_reference_t<Body>;
  parallel_for(
      tasks, threads,
      [](void* context, std::int64_t task, int thread) { (*static_cast<Function*>(context))(task, thread); },
      const_cast<std::remove_const_t<Function>*>(&body));
}

}  // namespace convt::host
