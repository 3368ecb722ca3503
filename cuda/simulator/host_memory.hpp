#pragma once

#include <cstring>
#include <stdexcept>
#include <vector>

#include "arch/lanes.hpp"
#include "simulator/run_direct.hpp"

namespace convt::simulator {

// Between two barriers every thread of a block runs, in either order.
template <class Visit>
void each_thread(const DirectRun& run, Visit visit) {
  for (int i = 0; i < run.threads; ++i) visit(run.backwards ? run.threads - 1 - i : i);
}

// A host reads from anywhere: what a GPU may, at so many bytes, is asked here.
inline void check_piece(std::int64_t piece, std::int64_t bytes) {
  if (bytes % piece != 0) throw std::runtime_error("global memory: a misaligned piece");
}

// Shared memory of a block, or a workspace.
class PoisonedMemory {
 public:
  explicit PoisonedMemory(std::int64_t bytes) : vectors_((bytes + 15) / 16) {}
  // All ones are a NaN in every type, and an index that no table has.
  char* poisoned() {
    std::memset(vectors_.data(), 0xff, vectors_.size() * sizeof(Vector16));
    return reinterpret_cast<char*>(vectors_.data());
  }

 private:
  std::vector<Vector16> vectors_;
};

}  // namespace convt::simulator
