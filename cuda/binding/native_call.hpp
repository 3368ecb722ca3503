#pragma once

#include <nanobind/nanobind.h>

#include <memory>

#include "binding/problem.hpp"
#include "binding/torch_calls.hpp"
#include "host/operators.hpp"
#include "launch/operator_plan.hpp"

namespace convt::binding {

// An operator with everything looked up that does not depend on the data. By native code, on a CPU or on a GPU, or by a
// Python closure over the same.
struct PreparedOperator {
  Operator op = Operator::forward;
  bool native = false;
  nanobind::object closure;                         // when it is not: (a, b, bias) or (a, b) -> result
  nanobind::object size, strides;                   // of the result; strides are None when it is contiguous
  Problem problem;
  std::unique_ptr<host::PreparedForward> forward;   // on a CPU
  nanobind::object cuda;                            // a CudaPlan, on a GPU
  const OperatorPlan* launchable = nullptr;         // what it wraps; a test's plan is of another type
  nanobind::object workspace;                       // the size for new_empty, null when none is needed
};

// Runs it on the operands in schema order: (input, weight), (grad_output, weight) or (grad_output, input). The tensors have
// been described. A new reference, or null with an error.
PyObject* run(const PreparedOperator& prepared, PyObject* a, PyObject* b, PyObject* bias,
              const TorchTensor& described_a, const TorchTensor& described_b, const TorchTensor* described_bias);

// grad_bias by native code: on a CPU, or on a GPU by a ChannelSum with the size of its workspace, which may be null.
struct BiasSum {
  PyObject *size, *on_gpu, *workspace;
};
PyObject* run_grad_bias(const BiasSum& sum, PyObject* grad_output, const TorchTensor& described);

}  // namespace convt::binding
