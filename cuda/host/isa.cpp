#include "host/isa.hpp"

#include <atomic>
#include <stdexcept>

namespace convt::host {

namespace baseline {
extern const Kernels kernels;
}
#ifdef CONVT_HAS_avx2
namespace avx2 {
extern const Kernels kernels;
}
#endif
#ifdef CONVT_HAS_avx512
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

struct Isa {
  const char* name;
  const Kernels* kernels;
  bool usable;
};

// Best first.
const std::vector<Isa>& isas() {
  static const std::vector<Isa> all = {
#ifdef CONVT_HAS_avx512
      {"avx512", &avx512::kernels,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma")},
#endif
#ifdef CONVT_HAS_avx2
      {"avx2", &avx2::kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
      {"baseline", &baseline::kernels, true},
  };
  return all;
}

std::atomic<const Isa*>& current() {
  static std::atomic<const Isa*> chosen = [] {
    for (const Isa& isa : isas()) {
      if (isa.usable) return &isa;
    }
    return &isas().back();
  }();
  return chosen;
}

}  // namespace

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas()) {
    if (isa.usable) names.emplace_back(isa.name);
  }
  return names;
}

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas()) names.emplace_back(isa.name);
  return names;
}

const Kernels& kernels() { return *current().load()->kernels; }
std::string isa() { return current().load()->name; }

void set_isa(const std::string& name) {
  std::string legal;
  for (const Isa& isa : isas()) {
    if (!isa.usable) continue;
    if (isa.name == name) {
      current().store(&isa);
      return;
    }
    legal += (legal.empty() ? "" : ", ") + std::string(isa.name);
  }
  throw std::invalid_argument("isa is '" + name + "'; this build on this machine has: " + legal);
}

}  // namespace convt::host
