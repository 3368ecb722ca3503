#pragma once

#include <nanobind/nanobind.h>

namespace convt::binding {

void bind_geometry(nanobind::module_& module);
void bind_host(nanobind::module_& module);
void bind_device(nanobind::module_& module);

// Creates conv_transpose{1,2,3}d, the eager entry. Plain CPU calls run there, at less than a dispatcher call's cost;
// everything else goes to the Python function that `connect` registers, argument for argument.
void bind_eager(nanobind::module_& module);

}  // namespace convt::binding
