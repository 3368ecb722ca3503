#pragma once

#include "launch/gemm_plan.hpp"
#include "launch/gemm_shape.hpp"

namespace convt {

// How the filter of a plan is packed: the jobs, who does them, and what of the filter is staged in shared memory. The plan has its
// configuration, parameters and tables. Pieces are as wide as the strides allow.
PackParams plan_packing(const GemmShape& shape, const GemmPlan& plan, const Strides& filter, std::int64_t counters,
                        const DeviceTraits& device);

// Narrows the pieces to what the filter's address allows.
void align_packing(PackParams& pack);

}  // namespace convt
