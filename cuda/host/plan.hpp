#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "geometry/problem.hpp"
#include "host/kernel_args.hpp"

namespace convt::host {

// Forward and grad_input as a correlation on the q-grid. args points into the vectors: moving keeps it valid, copying does not.
struct CorrelationPlan {
  CorrelationArgs args{};
  std::vector<CorrelationTap> taps;
  std::vector<std::int64_t> phase_begin;
  std::vector<std::array<std::int64_t, 3>> residues;
  std::int64_t tasks = 0;
  std::int64_t scratch_elements = 0;   // per thread
  std::int64_t packed_elements = 0;

  CorrelationPlan() = default;
  CorrelationPlan(CorrelationPlan&&) = default;
  CorrelationPlan(const CorrelationPlan&) = delete;
};

struct WeightGradientPlan {
  WeightGradientArgs args{};
  std::vector<WeightGradientTap> taps;
  std::vector<std::int64_t> plane_begin;
  std::vector<std::array<std::int64_t, 3>> residues;
  std::int64_t tasks = 0;
  std::int64_t scratch_elements = 0;
  std::int64_t partial_elements = 0;   // one slice

  WeightGradientPlan() = default;
  WeightGradientPlan(WeightGradientPlan&&) = default;
  WeightGradientPlan(const WeightGradientPlan&) = delete;
};

// Which operator reads which tensor: the filter always is (in_channels, out_channels / groups, D, H, W).
enum class Direction { forward, grad_input };

CorrelationPlan plan_correlation(const Problem& problem, Direction direction, const TensorView& source,
                                 const TensorView& filter, const TensorView& destination, DType dtype,
                                 const Kernels& kernels, int threads);

// Does not depend on the number of threads, so that the sums do not either.
WeightGradientPlan plan_weight_gradient(const Problem& problem, const TensorView& grad_output, const TensorView& input,
                                        DType dtype, const Kernels& kernels);

}  // namespace convt::host
