#pragma once

#include <algorithm>
#include <vector>

#include "kernel/turn_input.hpp"

namespace convt::simulator {

template <Operand kOperand>
void run_turn_of(const TurnParams& params, bool backwards) {
  using Kernel = TurnInput<kOperand>;
  using Element = typename Kernel::Element;
  std::vector<Element> shared(Kernel::kShared);
  const auto each_thread = [&](auto visit) {
    for (int at = 0; at < Kernel::kThreads; ++at) visit(backwards ? Kernel::kThreads - 1 - at : at);
  };
  for (std::int32_t tile = 0; tile < Kernel::tiles(params); ++tile) {
    std::fill(shared.begin(), shared.end(), Element(-1));   // NaN
    each_thread([&](int thread) { Kernel::fetch(params, tile, thread, shared.data()); });
    each_thread([&](int thread) { Kernel::store(params, tile, thread, shared.data()); });
  }
}

// The order of TurnInput::operator().
inline void run_turn(const TurnParams& params, Operand operand, bool backwards) {
  if (is_float32(operand)) return run_turn_of<Operand::tf32>(params, backwards);
  run_turn_of<Operand::bfloat16>(params, backwards);
}

}  // namespace convt::simulator
