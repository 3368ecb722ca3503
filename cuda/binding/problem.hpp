#pragma once

#include <string>
#include <vector>

#include "binding/torch_tensor.hpp"
#include "geometry/problem.hpp"
#include "launch/request.hpp"

namespace convt::binding {

using Integers = std::vector<std::int64_t>;

// An operator by its name in Python; a ValueError with the legal ones.
Operator operator_of(const std::string& name);

// The same of a dtype.
DType dtype_of(const std::string& name);

// A strided CPU tensor of a supported dtype, or an error that names it; of the dtype and rank of `like`, when given.
TorchTensor host_tensor(nanobind::handle tensor, const char* name);
TorchTensor host_tensor(nanobind::handle tensor, const char* name, const TorchTensor& like, int rank = 0);

// The problem of a batched input of these sizes; weight is (in_channels, out_channels / groups, *filter). Python has checked
// the arguments for its users: what is checked here is what memory safety needs.
Problem problem_of(const std::int64_t* input_sizes, const TorchTensor& weight, const Integers& stride,
                   const Integers& padding, const Integers& output_padding, std::int64_t groups,
                   const Integers& dilation);

void require_sizes(const TorchTensor& tensor, const char* name, const Problem& problem, std::int64_t channels,
                   std::int64_t (Axis::*extent)() const);

// A vector over channels, at index 1.
host::TensorView channel_view(const TorchTensor& vector);

}  // namespace convt::binding
