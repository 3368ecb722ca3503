#pragma once

#include <nanobind/nanobind.h>

namespace convt::binding {

void bind_geometry(nanobind::module_& module);
void bind_host(nanobind::module_& module);
void bind_device(nanobind::module_& module);

}  // namespace convt::binding
