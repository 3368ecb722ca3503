#pragma once

#include "launch/gemm_plan.hpp"

namespace convt::simulator {

// Packs a filter on the host through the code that a GPU runs: thread by thread, forwards or backwards, between the same barriers.
// Pointers are those of a call (`bind`). Shared memory starts as NaN.
void run_pack(const GemmPlan& plan, const PackParams& params, bool backwards);

}  // namespace convt::simulator
