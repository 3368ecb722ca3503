#pragma once

#include <nanobind/nanobind.h>

#include "launch/operator_plan.hpp"

namespace convt::binding {

// A plan in words and numbers, for `convt explain`.
nanobind::dict explain(const OperatorPlan& plan);

}  // namespace convt::binding
