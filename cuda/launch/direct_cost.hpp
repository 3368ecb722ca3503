#pragma once

#include <algorithm>

namespace convt {

// The predicted time of a CUDA-core kernel, in microseconds: what binds, and what comes on top of it.
struct DirectCost {
  double issue = 0;      // instructions
  double memory = 0;
  double overhead = 0;   // launch, and the way in and out of a thread block

  double total() const { return std::max(issue, memory) + overhead; }
  const char* bound() const { return issue > memory ? "issue" : "memory"; }
};

}  // namespace convt
