// Compiled once per instruction set (CONVT_ISA).
#include "host/correlate.hpp"
#include "host/weight_gradient.hpp"

namespace convt::host::CONVT_ISA {

// Order of DType.
#define CONVT_PER_DTYPE(function) {function<float>, function<double>, function<Half>, function<BFloat16>}

extern const Kernels kernels;
const Kernels kernels = {
    {kLanes<float>, kLanes<double>, kLanes<float>, kLanes<float>},
    {TileLimits<float>::rows, TileLimits<double>::rows, TileLimits<float>::rows, TileLimits<float>::rows},
    CONVT_PER_DTYPE(pack_filter),
    CONVT_PER_DTYPE(correlate),
    CONVT_PER_DTYPE(correlate_exact),
    CONVT_PER_DTYPE(weight_gradient),
    CONVT_PER_DTYPE(weight_gradient_exact),
    CONVT_PER_DTYPE(widen_bias),
    CONVT_PER_DTYPE(convert),
    CONVT_PER_DTYPE(channel_sum),
};

}  // namespace convt::host::CONVT_ISA
