#pragma once

#include <string>
#include <variant>
#include <vector>

#include "collective/gemm_params.hpp"
#include "geometry/tap_table.hpp"
#include "kernel/pack_filter.hpp"
#include "kernel/turn_input.hpp"
#include "launch/request.hpp"

namespace convt {

// The time of a launch, term by term; the largest of the first five binds, and what turns the input comes before. All in
// microseconds.
struct GemmCost {
  double tensor = 0, shared = 0, issue = 0, l2 = 0, memory = 0;
  double turning = 0;
  double total = 0;
  double bytes = 0;                 // through L2
  const char* bound() const;
};

// How one configuration computes the forward or grad_input of one problem. Pointers in the parameters are null until a launch fills them in.
struct GemmPlan {
  Operator op = Operator::forward;  // or grad_input
  TileConfig config{};
  Operand operand{};
  WayIn way = WayIn::gathered;
  GemmParams params{};
  PackParams pack{};
  PatchBox box{};                   // unless patches are gathered; without its base
  std::int32_t group_channels = 0, group_images = 0;   // of that tensor, from one group to the next
  TurnParams turn{};                // of WayIn::turned
  std::vector<char> tables;
  std::int64_t grid = 0;
  std::int64_t workspace_bytes = 0;
  std::int64_t filter_offset = 0;   // in the workspace; the tables are at 0
  std::int64_t arrived_offset = 0;
  std::int64_t partial_offset = 0;
  std::int64_t turned_offset = 0;
  std::array<Origin, kAxes> origin{};
  GemmCost cost;

  std::string name() const;
};

// Why a configuration does not multiply an operand, or runs on no other GPU.
inline constexpr const char* kNoRegisters = "its sums leave no registers for the three products of ieee";
inline constexpr const char* kHoppers = "its instructions are Hopper's";
inline constexpr const char* kTruncates = "its instructions truncate where they add, which ieee does not allow";

// Configurations in the order of configs.def, and their names, such as 64x256p4.
const std::vector<TileConfig>& gemm_configs();
std::string name_of(const TileConfig& config);

Operand operand_of(DType dtype, Precision precision);   // dtype is not float64

// Why tensor cores compute no operator of a problem; empty when they may.
std::string gemm_refusal(const Request& request);

class GemmSearch;

// The best plan of a configuration, or why it has none. `search` is the request's, for all configurations.
std::variant<GemmPlan, std::string> plan_gemm(const Request& request, const DeviceTraits& device,
                                              const TileConfig& config, GemmSearch& search);

// Fills the pointers of a call in. An input that is not aligned to 16 bytes is gathered.
struct GemmLaunch {
  GemmParams gemm;
  PackParams pack;
  WayIn way;
  PatchBox box;
  TurnParams turn;
};
GemmLaunch bind(const GemmPlan& plan, const Pointers& pointers);

}  // namespace convt
