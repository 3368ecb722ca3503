#pragma once

#include "launch/outer_plan.hpp"
#include "simulator/block_executor.hpp"

namespace convt::simulator {

// Computes a plan on the host through the very code that a GPU runs, thread block by thread block. Pointers are host pointers; the
// workspace has plan.workspace_bytes.
Counters simulate(const GemmPlan& plan, const Pointers& pointers, const Schedule& schedule);
Counters simulate(const WeightPlan& plan, const Pointers& pointers, const Schedule& schedule);
Counters simulate(const OuterPlan& plan, const Pointers& pointers, const Schedule& schedule);

}  // namespace convt::simulator
