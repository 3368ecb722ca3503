#pragma once

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "kernel/turn_input.hpp"

namespace convt::simulator {

template <Operand kOperand>
void run_turn_of(const TurnParams& params, bool backwards) {
  using Kernel = TurnInput<kOperand>;
  std::vector<Vector16> memory(Kernel::kShared / 4);
  auto* const shared = memory.data()->word;
  const auto each_thread = [&](auto visit) {
    for (int at = 0; at < Kernel::kThreads; ++at) visit(backwards ? Kernel::kThreads - 1 - at : at);
  };
  for (std::int32_t tile = 0; tile < Kernel::tiles(params); ++tile) {
    std::fill_n(shared, Kernel::kShared, ~0u);   // NaN
    each_thread([&](int thread) { Kernel::fetch(params, tile, thread, shared); });
    each_thread([&](int thread) { Kernel::store(params, tile, thread, shared); });
  }
}

// A host reads from anywhere: what a GPU may is asked here.
inline void check_pieces(const TurnParams& params, std::int64_t element_bytes) {
  const auto check = [&](std::int64_t piece, std::int64_t at) {
    if (at * element_bytes % piece != 0) throw std::runtime_error("global memory: a misaligned piece");
  };
  if (params.from == TurnFrom::singly) return;
  const bool channels = params.from == TurnFrom::channels;
  const std::int64_t piece = channels ? 16 : params.piece;
  check(piece, std::int64_t(reinterpret_cast<std::uintptr_t>(params.source) / std::uintptr_t(element_bytes)));
  if (!channels) check(piece, params.pixels);
  for (int axis = 0; axis < 2 + kAxes; ++axis) {
    const std::int64_t channel_count = std::int64_t(params.groups) * params.channels;
    const bool stepped = axis == 0 ? params.images > 1 : axis == 1 ? !channels && channel_count > 1 : channels;
    if (stepped) check(piece, params.strides[axis]);
  }
}

// The order of TurnInput::operator().
inline void run_turn(const TurnParams& params, Operand operand, bool backwards) {
  check_pieces(params, operand_bytes(operand));
  if (is_float32(operand)) return run_turn_of<Operand::tf32>(params, backwards);
  run_turn_of<Operand::bfloat16>(params, backwards);
}

}  // namespace convt::simulator
