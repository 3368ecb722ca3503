#include <algorithm>

#include "launch/device_guard.hpp"
#include "launch/device_kernel.cuh"
#include "launch/turn_plan.hpp"

namespace convt {
namespace {

template <Operand kOperand>
void launch(const TurnParams& params, void* stream) {
  using Kernel = TurnInput<kOperand>;
  constexpr std::int64_t most = 132 * 32;
  launch_kernel<Kernel>(dim3(unsigned(std::min(Kernel::tiles(params), most))), Kernel::kThreads, 0, stream, params,
                        "launching the turning of the input");
}

}  // namespace

void launch_turning(const TurnParams& params, Operand operand, void* stream) {
  // 16 bits are moved, whatever they are.
  return is_float32(operand) ? launch<Operand::tf32>(params, stream) : launch<Operand::bfloat16>(params, stream);
}

void launch_turning_on(int device, const TurnParams& params, Operand operand, void* stream) {
  const DeviceGuard guard(device);
  launch_turning(params, operand, stream);
}

}  // namespace convt
