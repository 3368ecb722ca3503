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
  std::int64_t shared_per_block;           // bytes, with the opt-in
  std::int64_t shared_per_multiprocessor;
  std::int64_t l2_bytes;
  double clock_ghz;                        // boost
  double product_clock_ghz;                // what is left of it while tensor cores multiply
  double memory_gbs;                       // what a copy reaches: about 0.9 of the interface
};

// Empty when there is no driver or no GPU.
std::vector<DeviceInfo> cuda_devices();

// The tap table of an axis, computed by the current GPU: the same geometry on both sides. Throws std::runtime_error.
std::vector<Tap> cuda_taps(const Axis& axis, Origin origin);

}  // namespace convt
