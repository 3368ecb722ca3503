#pragma once

#include <nanobind/nanobind.h>

#include "launch/forward_plan.hpp"

namespace convt::binding {

// A plan in words and numbers, for `convt explain`.
nanobind::dict explain(const ForwardPlan& plan);

}  // namespace convt::binding
