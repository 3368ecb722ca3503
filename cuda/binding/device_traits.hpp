#pragma once

#include <nanobind/nanobind.h>

#include <optional>

#include "binding/problem.hpp"
#include "launch/request.hpp"

namespace convt::binding {

// An entry of cuda_devices(), an H200 without one. A GPU that would run what was compiled for older ones counts as such.
DeviceTraits traits_of(const std::optional<nanobind::dict>& device);

// Strides of (N, C, *spatial) with leading spatial axes of extent 1 put in.
Strides strides_of(const Integers& sizes, const Integers& strides, const char* name);

}  // namespace convt::binding
