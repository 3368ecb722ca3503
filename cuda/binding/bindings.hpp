#pragma once

#include <nanobind/nanobind.h>

namespace convt::binding {

void bind_geometry(nanobind::module_& module);
void bind_host(nanobind::module_& module);
void bind_device(nanobind::module_& module);
void bind_cuda(nanobind::module_& module);
void bind_channel_sum(nanobind::module_& module);
void bind_turning(nanobind::module_& module);
void bind_simulator(nanobind::module_& module);
void bind_direct(nanobind::module_& module);

// The eager entry, conv_transpose{1,2,3}d as C functions. Plain CPU calls are answered there, at less than a dispatcher
// call's cost; everything else goes to the Python functions that `connect` is given, argument for argument.
void bind_eager(nanobind::module_& module);

}  // namespace convt::binding
