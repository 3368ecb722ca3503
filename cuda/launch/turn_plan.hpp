#pragma once

#include <array>

#include "config/tile_config.hpp"
#include "kernel/turn_input.hpp"
#include "launch/request.hpp"

namespace convt {

// A tensor that is turned to [group][image][pixel][channel] before a kernel reads it.
struct TurnShape {
  Strides strides{};                             // as it lies
  std::int64_t images = 1, groups = 1, channels = 1;   // channels of a group
  std::int64_t pitch = 1;                        // channels from one pixel of a group to the next, turned
  std::array<std::int64_t, kAxes> extents{1, 1, 1};

  std::int64_t pixels() const { return extents[0] * extents[1] * extents[2]; }   // of an image
};

// Of one group.
Strides turned_strides(const TurnShape& shape);

// How it is turned, without pointers; and what that takes: bytes, microseconds.
TurnParams plan_turning(const TurnShape& shape, Operand operand);
std::int64_t turned_bytes(const TurnParams& params, Operand operand);
double turning_time(const TurnShape& shape, Operand operand, const DeviceTraits& device);
// Whether an index tells its tiles.
bool can_turn(const TurnShape& shape);

// Tells where from and where to. Fetches less at a time where the source is not aligned for more.
void place_turning(TurnParams& params, const void* source, void* target);

// On the current device, or on a stream of `device`. Throws std::runtime_error.
void launch_turning(const TurnParams& params, Operand operand, void* stream);
void launch_turning_on(int device, const TurnParams& params, Operand operand, void* stream);

}  // namespace convt
