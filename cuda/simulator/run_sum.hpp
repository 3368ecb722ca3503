#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernel/sum_partials.hpp"

namespace convt::simulator {

// The order of SumPartials::operator().
template <class S>
void run_sum(const typename SumPartials<S>::Params& params) {
  using Kernel = SumPartials<S>;
  std::vector<typename Kernel::T> shared(Kernel::kShared);
  for (std::int64_t tile = 0; tile < Kernel::tiles(params.shape); ++tile) {
    std::fill(shared.begin(), shared.end(), std::numeric_limits<typename Kernel::T>::quiet_NaN());
    for (int thread = 0; thread < Kernel::kThreads; ++thread) Kernel::gather(params, tile, thread, shared.data());
    for (int thread = 0; thread < Kernel::kThreads; ++thread) Kernel::scatter(params, tile, thread, shared.data());
  }
}

}  // namespace convt::simulator
