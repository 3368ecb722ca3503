#include "launch/operator_plan.hpp"

#include <algorithm>
#include <iterator>
#include <stdexcept>

#include "launch/gemm_search.hpp"

namespace convt {
namespace {

constexpr const char* kGemm = "implicit_gemm";
constexpr const char* kDepthwise = "depthwise";
constexpr const char* kSimt = "simt";
// In the order of OperatorPlan::chosen.
constexpr const char* kFamilies[] = {kGemm, kGemm, kGemm, kDepthwise, kSimt};
static_assert(std::size(kFamilies) == std::variant_size_v<decltype(OperatorPlan::chosen)>, "a name per family");

std::string config_of(const GemmPlan& plan) { return plan.name(); }
std::string config_of(const WeightPlan& plan) { return plan.name(); }
std::string config_of(const OuterPlan& plan) { return plan.name(); }
std::string config_of(const DepthwisePlan& plan) { return plan.config; }
std::string config_of(const SimtPlan& plan) { return plan.config; }

double time_of(const GemmPlan& plan) { return plan.cost.total; }
double time_of(const WeightPlan& plan) { return plan.cost.total; }
double time_of(const OuterPlan& plan) { return plan.cost.total; }
double time_of(const DepthwisePlan& plan) { return plan.cost().total(); }
double time_of(const SimtPlan& plan) { return plan.cost.total(); }

// Puts a candidate on the list, and in the plan when none before it is as fast.
template <class Plan>
void consider(OperatorPlan& best, bool& found, const std::string& name, std::variant<Plan, std::string> planned) {
  if (const auto* reason = std::get_if<std::string>(&planned)) {
    best.candidates.push_back({name, 0, *reason});
    return;
  }
  Plan& plan = std::get<Plan>(planned);
  const double time = time_of(plan);
  best.candidates.push_back({name, time, ""});
  if (found && time >= best.predicted_us()) return;
  best.chosen = std::move(plan);
  found = true;
}

void require_known(Operator op, const std::string& forced) {
  std::string legal;
  const auto is = [&](const std::string& name) {
    legal += (legal.empty() ? "" : ", ") + name;
    return forced == name;
  };
  if (std::any_of(std::begin(kFamilies) + 2, std::end(kFamilies), is)) return;   // the first three share a name
  const auto among = [&](const auto& configs) {
    return std::any_of(configs.begin(), configs.end(), [&](const auto& config) { return is(name_of(config)); });
  };
  if (op == Operator::grad_weight ? among(weight_configs()) || among(outer_configs()) : among(gemm_configs())) return;
  throw std::invalid_argument("kernel: " + forced + "; legal are " + legal);
}

// Candidates that share a reason share its mention: "simt: ...; 64x256p4, 128x128p4: ...".
std::string reasons_of(const std::vector<PlanCandidate>& candidates) {
  std::vector<std::pair<std::string, std::string>> names_of;   // by reason
  for (const PlanCandidate& candidate : candidates) {
    const auto same = std::find_if(names_of.begin(), names_of.end(),
                                   [&](const auto& entry) { return entry.first == candidate.reason; });
    if (same != names_of.end()) {
      same->second += ", " + candidate.name;
    } else {
      names_of.push_back({candidate.reason, candidate.name});
    }
  }
  if (names_of.size() == 1) return names_of[0].first;
  std::string told;
  for (const auto& [reason, names] : names_of) told += (told.empty() ? "" : "; ") + names + ": " + reason;
  return told;
}

}  // namespace

const char* OperatorPlan::kernel() const { return kFamilies[chosen.index()]; }
std::string OperatorPlan::config() const {
  return std::visit([](const auto& plan) { return config_of(plan); }, chosen);
}
std::int64_t OperatorPlan::workspace_bytes() const {
  return std::visit([](const auto& plan) { return plan.workspace_bytes; }, chosen);
}
double OperatorPlan::predicted_us() const {
  return std::visit([](const auto& plan) { return time_of(plan); }, chosen);
}

OperatorPlan plan_operator(const Request& request, const DeviceTraits& device,
                           const std::optional<std::string>& forced) {
  if (forced) require_known(request.op, *forced);
  const auto wanted = [&](const std::string& name) { return !forced || *forced == name; };
  OperatorPlan best;
  best.request = request;
  best.device = device;
  bool found = false;
  const auto consider_gemms = [&](const auto& configs, auto plan_of) {
    for (const auto& config : configs) {
      const std::string name = name_of(config);
      if (wanted(kGemm) || wanted(name)) consider(best, found, name, plan_of(config));
    }
  };
  if (request.op == Operator::grad_weight) {
    consider_gemms(weight_configs(), [&](const WeightConfig& config) { return plan_weight(request, device, config); });
    consider_gemms(outer_configs(), [&](const OuterConfig& config) { return plan_outer(request, device, config); });
  } else {
    GemmSearch search(request);
    consider_gemms(gemm_configs(),
                   [&](const TileConfig& config) { return plan_gemm(request, device, config, search); });
  }
  if (wanted(kDepthwise)) consider(best, found, kDepthwise, plan_depthwise(request, device));
  if (wanted(kSimt)) consider(best, found, kSimt, plan_simt(request, device));
  if (found) return best;
  const std::string what = forced ? "kernel " + *forced + " cannot compute this problem: " : "no kernel can: ";
  throw std::invalid_argument(what + reasons_of(best.candidates));
}

}  // namespace convt
