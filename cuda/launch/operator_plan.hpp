#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "launch/depthwise.hpp"
#include "launch/gemm_plan.hpp"
#include "launch/outer_plan.hpp"
#include "launch/simt.hpp"
#include "launch/weight_plan.hpp"

namespace convt {

// What was considered for a problem: a configuration of the implicit GEMM, or another kernel family.
struct PlanCandidate {
  std::string name;
  double predicted_us = 0;     // when it can
  std::string reason;          // when it cannot
};

// How a call of an operator is computed. A value without pointers, good for any number of calls.
struct OperatorPlan {
  Request request;
  DeviceTraits device;
  std::variant<GemmPlan, WeightPlan, OuterPlan, DepthwisePlan, SimtPlan> chosen;
  std::vector<PlanCandidate> candidates;

  const char* kernel() const;                 // family: implicit_gemm, depthwise or simt
  std::string config() const;
  std::int64_t workspace_bytes() const;
  double predicted_us() const;
};

// The fastest candidate by its predicted time. `forced` names a family or a configuration of the implicit GEMM; throws
// std::invalid_argument with the legal names, or with the reason when the forced one cannot compute the problem.
OperatorPlan plan_operator(const Request& request, const DeviceTraits& device,
                           const std::optional<std::string>& forced);

}  // namespace convt
