#pragma once

#include "kernel/turn_input.hpp"
#include "simulator/host_memory.hpp"

namespace convt::simulator {

template <Operand kOperand>
void run_turn_of(const TurnParams& params, bool backwards) {
  using Kernel = TurnInput<kOperand>;
  const DirectRun run{Kernel::tiles(params), Kernel::kThreads, 4 * Kernel::kShared, backwards};
  PoisonedMemory memory(run.shared_bytes);
  for (std::int32_t tile = 0; tile < run.blocks; ++tile) {
    auto* const shared = reinterpret_cast<std::uint32_t*>(memory.poisoned());
    each_thread(run, [&](int thread) { Kernel::fetch(params, tile, thread, shared); });
    each_thread(run, [&](int thread) { Kernel::store(params, tile, thread, shared); });
  }
}

inline void check_pieces(const TurnParams& params, std::int64_t element_bytes) {
  if (params.from == TurnFrom::singly) return;
  const bool channels = params.from == TurnFrom::channels;
  const std::int64_t piece = channels ? 16 : params.piece;
  check_piece(piece, reinterpret_cast<std::intptr_t>(params.source));
  if (!channels) check_piece(piece, params.pixels * element_bytes);
  for (int axis = 0; axis < 2 + kAxes; ++axis) {
    const std::int64_t channel_count = std::int64_t(params.groups) * params.channels;
    const bool stepped = axis == 0 ? params.images > 1 : axis == 1 ? !channels && channel_count > 1 : channels;
    if (stepped) check_piece(piece, params.strides[axis] * element_bytes);
  }
}

// The order of TurnInput::operator().
inline void run_turn(const TurnParams& params, Operand operand, bool backwards) {
  check_pieces(params, operand_bytes(operand));
  if (is_float32(operand)) return run_turn_of<Operand::tf32>(params, backwards);
  run_turn_of<Operand::bfloat16>(params, backwards);
}

}  // namespace convt::simulator
