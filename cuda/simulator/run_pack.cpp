#include "simulator/run_pack.hpp"

#include <algorithm>
#include <cstring>

#include "simulator/host_memory.hpp"

namespace convt::simulator {

// The order of PackFilter::run, and of the kernel around it.
void run_pack(const GemmPlan& plan, const PackParams& params, bool backwards) {
  const char* const tables = plan.tables.data();
  std::memcpy(params.tables, tables, plan.tables.size());
  std::fill_n(params.arrived, params.counters, 0);
  const DirectRun run{params.grid(), PackFilter::kThreads, params.shared.bytes, backwards};
  PoisonedMemory memory(run.shared_bytes);
  for (std::int64_t index = 0; index < run.blocks; ++index) {
    const auto block = std::int32_t(backwards ? run.blocks - 1 - index : index);
    char* const shared = memory.poisoned();
    const PackFilter::Share share = PackFilter::share_of(params, block);
    each_thread(run, [&](int thread) { PackFilter::tabulate(params, tables, share, thread, shared); });
    for (std::int32_t job = share.first_job; job < params.jobs; job += params.blocks) {
      const PackFilter::Job at = PackFilter::job_of(params, share, job);
      if (params.staged_levels > 0) {
        each_thread(run, [&](int thread) { PackFilter::stage(params, share, at, thread, shared); });
      }
      each_thread(run, [&](int thread) { PackFilter::write(params, share, at, thread, shared); });
    }
  }
}

}  // namespace convt::simulator
