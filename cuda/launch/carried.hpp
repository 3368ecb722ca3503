#pragma once

namespace convt {

// Tables that travel as a kernel's parameter: nothing to allocate, to copy or to wait for.
template <int kBytes>
struct Carried {
  alignas(16) char bytes[kBytes];
};

}  // namespace convt
