#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "geometry/tap_table.hpp"

namespace convt {

struct DeviceInfo {
  std::string name;
  int major, minor;              // compute capability
  int multiprocessors;
  std::int64_t memory_bytes;
};

// Empty when there is no driver or no GPU.
std::vector<DeviceInfo> cuda_devices();

// The tap table of an axis, computed by the current GPU: the same geometry on both sides. Throws std::runtime_error.
std::vector<Tap> cuda_taps(const Axis& axis, Origin origin);

}  // namespace convt
