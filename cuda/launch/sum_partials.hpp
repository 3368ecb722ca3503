#pragma once

#include "kernel/sum_partials.hpp"
#include "launch/request.hpp"

namespace convt {

// What adds the partial sums of a weight gradient up.
SumShape sum_shape(const Request& request, std::int64_t splits);

// Bytes of the partial sums.
std::int64_t partial_bytes(const Request& request, std::int64_t splits);

// On the current device; asynchronous. Throws std::runtime_error.
void launch_sum_partials(const SumShape& shape, DType dtype, const void* partial, void* result, void* stream);

}  // namespace convt
