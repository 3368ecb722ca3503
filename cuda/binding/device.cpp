#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "binding/bindings.hpp"
#include "launch/device_info.hpp"

namespace nb = nanobind;

namespace convt::binding {

void bind_device(nb::module_& module) {
  module.def(
      "cuda_devices",
      [] {
        nb::list devices;
#ifdef CONVT_WITH_CUDA
        for (const DeviceInfo& device : cuda_devices()) {
          nb::dict entry;
          entry["name"] = device.name;
          entry["capability"] = nb::make_tuple(device.major, device.minor);
          entry["multiprocessors"] = device.multiprocessors;
          entry["memory_bytes"] = device.memory_bytes;
          entry["shared_per_block"] = device.shared_per_block;
          entry["shared_per_multiprocessor"] = device.shared_per_multiprocessor;
          entry["l2_bytes"] = device.l2_bytes;
          entry["clock_ghz"] = device.clock_ghz;
          entry["product_clock_ghz"] = device.product_clock_ghz;
          entry["memory_gbs"] = device.memory_gbs;
          devices.append(entry);
        }
#endif
        return devices;
      },
      "The NVIDIA GPUs that this process can use; none in a build without CUDA.");
#ifdef CONVT_WITH_CUDA
  module.def(
      "cuda_taps",
      [](const Axis& axis, Origin origin) {
        nb::list taps;
        for (const Tap& tap : cuda_taps(axis, origin)) taps.append(nb::make_tuple(tap.shift, tap.phase));
        return taps;
      },
      "The tap table of an axis, computed on the current GPU.");
#endif
}

}  // namespace convt::binding
