#pragma once

#include <nanobind/nanobind.h>

#include "binding/torch_tensor.hpp"
#include "geometry/epilogue.hpp"

namespace convt::binding {

// The program of a call on CPU tensors: None, or a sequence of (name, a, b, operand). Throws a ValueError that names the
// step, or a TypeError. The tensors must outlive the program.
Program program_of(nanobind::handle steps, const TorchTensor& output);

// The same of a call on a GPU, where an operand is None or (data pointer, dtype, five strides); sizes are the caller's care.
Program program_of_pointers(nanobind::handle steps, DType output);

}  // namespace convt::binding
