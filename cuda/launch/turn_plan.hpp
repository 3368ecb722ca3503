#pragma once

#include "config/tile_config.hpp"
#include "kernel/turn_input.hpp"
#include "launch/gemm_shape.hpp"

namespace convt {

// Channels from one group to the next where an input is turned: whole vectors, or with several groups whole chunks, since a box would
// reach into the next group.
std::int64_t turned_pitch(const GemmShape& shape, const TileConfig& config, Operand operand);

// The same operator on the turned input.
GemmShape turned_shape(const GemmShape& shape, const TileConfig& config, Operand operand);

// How it is turned, without pointers; and what that takes, microseconds.
TurnParams plan_turning(const GemmShape& shape, const TileConfig& config, Operand operand);
double turning_time(const GemmShape& shape, const TileConfig& config, Operand operand, const DeviceTraits& device);
// Whether an index tells its tiles.
bool can_turn(const GemmShape& shape, const TileConfig& config, Operand operand);

// Bytes of the turned input.
std::int64_t turned_bytes(const TurnParams& params, Operand operand);

// Fetches less at a time where the source is not aligned for more.
void align_turning(TurnParams& params);

// On the current device. Throws std::runtime_error.
void launch_turning(const TurnParams& params, Operand operand, void* stream);

}  // namespace convt
