#pragma once

#include <nanobind/nanobind.h>

#include <optional>

#include "binding/torch_tensor.hpp"
#include "launch/request.hpp"

namespace convt::binding {

inline constexpr int kRanks = 3;

// A reference that is owned. Unlike nb::object it says on the spot whether a call has failed.
struct Owned {
  PyObject* object = nullptr;
  explicit Owned(PyObject* stolen) : object(stolen) {}
  ~Owned() { Py_XDECREF(object); }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  explicit operator bool() const { return object != nullptr; }
  PyObject* release() { return std::exchange(object, nullptr); }
};

// A GPU that is only pretended, for tests: tensors of the CPU count as its own, and launches reach Python.
struct Rehearsal {
  int device;
  PyObject* launch;      // called as _C.cuda_run
  PyObject* raw_stream;  // device index to stream
};

// Python objects that calls need, filled by `connect` and kept for good: they outlive the interpreter's teardown order.
struct Connection {
  PyObject* tensor_type;
  PyObject* parameter_type;
  PyObject* full[kRanks];  // convt's Python functions
  PyObject* aten[kRanks];  // torch.conv_transpose{1,2,3}d
  PyObject* aten_small[kRanks];  // torch._C._nn.slow_conv_transpose{2,3}d: no oneDNN, no setup; None in 1-D
  PyObject* resolve;  // what to do with a forward call; see eager.py
  PyObject* resolve_gradients;  // and with both gradients, or one of them
  PyObject* resolve_operator[3];  // and with a gradient by itself, as the inner ops ask for it; none for the forward
  PyObject* overloads[3];          // torch.ops.convt's inner ops, by Operator: calls that pass the dispatcher
  PyObject* inner[3];  // Autograd kernels of the inner ops, by Operator
  PyObject* record;  // (plan, form, input, weight, bias) -> output with a node
  PyObject* grad_enabled;
  PyObject* any_autocast;
  PyObject* autocast_enabled;  // of a device type
  PyObject* autocast_dtype;
  PyObject* precision;  // PyTorch's own switch for float32 convolutions on a GPU
  PyObject* raw_stream;
  PyObject* dtypes[kDTypes];
  PyObject* device_types[2];  // "cpu", "cuda"
  PyObject* watchers[6];  // callables that return something true when a call must pass the dispatcher
  int watcher_count;
  int op_watcher_count;  // the first ones ask for convt's op by name; to the others ATen's is as good
  PyObject* forward_ad;  // the dictionary that holds _current_level
  PyObject *current_level, *is_neg, *new_empty, *new_empty_strided, *to, *sum;
  PyObject *unpack_dual, *of_level, *lowest_level;  // (tensor, level=0) -> its primal and tangent
  PyObject* of_bytes;  // the keywords of new_empty for a workspace
  PyObject* uint8;
  PyObject* requires_grad;  // Tensor's descriptor: asked directly, it costs a third of an attribute look-up
  descrgetfunc get_requires_grad;
  PyObject* names[8];  // of a call's arguments
};

void set_connection(const nanobind::dict& from);
const Connection& connected();

void rehearse(const Rehearsal& pretended);
void end_rehearsal();
const Rehearsal* rehearsal();

// An exact int; the value of a tuple or list of `count` of them.
bool integer(PyObject* value, std::int64_t& to);
bool integers(PyObject* value, int count, std::int64_t* to);

// False after an error as well: a caller then takes the full path, which raises it again in words.
bool is_false(PyObject* owned);
bool ask(PyObject* function);   // true unless the answer is false
bool unwatched(int begin, int end);
bool in_forward_ad();
// Whether a tensor has a tangent. in_forward_ad tells of levels entered by torch.autograd.forward_ad; Dynamo's graphs enter them
// without it.
bool is_dual(PyObject* tensor);
bool is_tensor(PyObject* value, bool parameter_too);
bool wants_grad(PyObject* tensor);
bool is_negated(PyObject* tensor);

// read_tensor, and a pretended GPU's tensors where they are said to be.
bool describe(PyObject* tensor, TorchTensor& to);

// What autocast makes of floating-point tensors on a device, but float64; nothing where it is off. `known` turns false when
// it is on with a dtype that is not ours.
std::optional<host::DType> autocast_dtype(const TorchTensor& head, bool& known);

// Whether PyTorch multiplies float32 in TF32 on a GPU.
bool torch_allows_tf32();

}  // namespace convt::binding
