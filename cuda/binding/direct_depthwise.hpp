#pragma once

#include <nanobind/nanobind.h>

#include "kernel/direct_params.hpp"
#include "launch/request.hpp"

namespace convt::binding {

// Plans a depthwise kernel and runs its functions on the host, in the tensors' places; `dry`: the plan alone. What the plan
// says, or a ValueError with the reason why there is none.
nanobind::dict run_depthwise(const Request& request, const DirectOperands& data, const Program& program, bool backwards,
                             bool unaligned, bool dry);

}  // namespace convt::binding
