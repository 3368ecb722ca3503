#include "launch/sum_partials.hpp"

#include <algorithm>

#include "launch/device_kernel.cuh"

namespace convt {
namespace {

template <class S>
void launch(const SumShape& shape, const void* partial, void* result, void* stream) {
  using Kernel = SumPartials<S>;
  constexpr std::int64_t most = 132 * 16;
  const std::int64_t blocks = std::clamp<std::int64_t>(Kernel::tiles(shape), 1, most);
  launch_kernel<Kernel>(dim3(unsigned(blocks)), Kernel::kThreads, 0, stream,
                        {shape, static_cast<const typename Kernel::T*>(partial), static_cast<S*>(result)},
                        "launching the sum of a weight gradient");
}

}  // namespace

void launch_sum_partials(const SumShape& shape, DType dtype, const void* partial, void* result, void* stream) {
  with_storage(dtype, [&]<class S>(std::type_identity<S>) { launch<S>(shape, partial, result, stream); });
}

}  // namespace convt
