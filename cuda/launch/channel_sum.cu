#include "launch/channel_sum.hpp"
#include "launch/device_guard.hpp"
#include "launch/device_kernel.cuh"

namespace convt {

void launch_channel_sum(const ChannelSumPlan& plan, const void* source, void* result, void* workspace, void* stream,
                        int device) {
  const DeviceGuard guard(device);
  with_storage(plan.dtype, [&]<class S>(std::type_identity<S>) {
    using First = ChannelSum<S, S>;
    using Second = ChannelSum<Accumulator<S>, S>;
    const ChannelSumCall<S> call(plan, source, result, workspace);
    const auto blocks = [](const ChannelSumShape& shape) {
      return dim3(unsigned(shape.across) * unsigned(shape.shares));
    };
    launch_kernel<First>(blocks(call.first.shape), First::kThreads, 0, stream, call.first,
                         "launching the sum of a bias' gradient");
    if (!call.shared) return;
    launch_kernel<Second>(blocks(call.second.shape), Second::kThreads, 0, stream, call.second,
                          "launching the sum of its shares");
  });
}

}  // namespace convt
