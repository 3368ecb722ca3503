#pragma once

#include <cstring>

#include "launch/carried.hpp"
#include "launch/cuda_check.hpp"
#include "launch/gemm_launch.hpp"
#include "launch/weight_plan.hpp"

namespace convt {

// Launches a weight gradient's products, their tables with them or before, and the sum of what is partial.
template <class Plan, class Params>
void launch_product(const Plan& plan, Params params, const void* function, int threads, const Pointers& pointers,
                    const char* doing) {
  Carried<kCarriedTables> carried;
  if (plan.carried()) {
    std::memcpy(carried.bytes, plan.tables.data(), plan.tables.size());
  } else {
    launch_tables(plan.tables, static_cast<char*>(pointers.workspace), pointers.stream);
  }
  void* arguments[] = {&params, &carried};
  launch_function(function, plan.grid, threads, params.shared.bytes, arguments, pointers.stream, doing);
  if (params.partial) launch_sum_partials(plan.sum, plan.dtype, params.result, pointers.filter, pointers.stream);
}

}  // namespace convt
