#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "binding/bindings.hpp"
#include "host/isa.hpp"

namespace nb = nanobind;

namespace {

nb::dict build_info() {
  nb::dict info;
  info["version"] = CONVT_VERSION;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#endif
#ifdef CONVT_WITH_CUDA
  info["cuda"] = CONVT_CUDA_VERSION;
  info["cuda_architectures"] = CONVT_CUDA_ARCHITECTURES;
#else
  info["cuda"] = nb::none();
  info["cuda_architectures"] = nb::none();
#endif
  info["isas"] = convt::host::compiled_isas();
  return info;
}

}  // namespace

NB_MODULE(_C, module) {
  module.doc() = "Native part of convt: geometry, CPU backend, CUDA kernels and their simulator.";
  module.def("build_info", &build_info, "What this module was built from and for.");
  convt::binding::bind_geometry(module);
  convt::binding::bind_host(module);
  convt::binding::bind_device(module);
  convt::binding::bind_cuda(module);
  convt::binding::bind_channel_sum(module);
  convt::binding::bind_turning(module);
  convt::binding::bind_simulator(module);
  convt::binding::bind_direct(module);
  convt::binding::bind_eager(module);
}
