#include "binding/native_call.hpp"

#include "launch/channel_sum.hpp"
#ifdef CONVT_WITH_CUDA
#include "launch/operator_launch.hpp"
#endif

namespace nb = nanobind;

namespace convt::binding {
namespace {

PyObject* new_result(PyObject* like, PyObject* size, PyObject* strides) {
  PyObject* arguments[3] = {like, size, strides};
  if (!strides || strides == Py_None) {
    return PyObject_VectorcallMethod(connected().new_empty, arguments, 2, nullptr);
  }
  return PyObject_VectorcallMethod(connected().new_empty_strided, arguments, 3, nullptr);
}

bool describe_new(PyObject* tensor, TorchTensor& to) {
  if (describe(tensor, to)) return true;
  if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "convt: torch returned a result that cannot be described");
  return false;
}

void* stream_of(int device) {
  const Rehearsal* const as = rehearsal();
  PyObject* const ask = as ? as->raw_stream : connected().raw_stream;
  const Owned index(PyLong_FromLong(device));
  const Owned stream(PyObject_Vectorcall(ask, &index.object, 1, nullptr));
  if (!stream) throw nb::python_error();
  void* const raw = PyLong_AsVoidPtr(stream.object);
  if (!raw && PyErr_Occurred()) throw nb::python_error();
  return raw;
}

std::uintptr_t number(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

void launch(const PreparedOperator& prepared, const Pointers& pointers, int device) {
  if (const Rehearsal* const as = rehearsal()) {
    nb::borrow(as->launch)(prepared.cuda, number(pointers.input), number(pointers.filter), number(pointers.bias),
                           number(pointers.output), number(pointers.workspace), device, number(pointers.stream));
    return;
  }
#ifdef CONVT_WITH_CUDA
  if (prepared.launchable) {
    nb::gil_scoped_release release;
    launch_operator(*prepared.launchable, pointers, device);
    return;
  }
#endif
  throw std::runtime_error("convt: this build has no CUDA kernels to launch");
}

// Memory of a size for new_empty, or none.
struct Workspace {
  Owned tensor{nullptr};
  TorchTensor described;

  Workspace(PyObject* size, PyObject* like) {
    if (!size) return;
    PyObject* arguments[3] = {like, size, connected().uint8};
    tensor.object = PyObject_VectorcallMethod(connected().new_empty, arguments, 2, connected().of_bytes);
    if (!tensor || !describe_new(tensor.object, described)) throw nb::python_error();
  }
};

void run_on_gpu(const PreparedOperator& prepared, PyObject* like, const TorchTensor (&places)[3],
                const TorchTensor* bias) {
  const int device = places[0].device_index;
  const Workspace workspace(prepared.workspace.ptr(), like);
  launch(prepared,
         {places[0].data, places[1].data, bias ? bias->data : nullptr, places[2].data, workspace.described.data,
          stream_of(device)},
         device);
}

void sum_on_gpu(const BiasSum& sum, PyObject* grad_output, const TorchTensor& from, const TorchTensor& to) {
  const Workspace workspace(sum.workspace, grad_output);
  void* const stream = stream_of(from.device_index);
  if (const Rehearsal* const as = rehearsal()) {
    nb::borrow(as->launch)(nb::handle(sum.on_gpu), number(from.data), 0, 0, number(to.data),
                           number(workspace.described.data), from.device_index, number(stream));
    return;
  }
#ifdef CONVT_WITH_CUDA
  const auto& plan = *nb::inst_ptr<ChannelSumPlan>(sum.on_gpu);
  nb::gil_scoped_release release;
  launch_channel_sum(plan, from.data, to.data, workspace.described.data, stream, from.device_index);
#else
  throw std::runtime_error("convt: this build has no CUDA kernels to launch");
#endif
}

void run_on_cpu(const PreparedOperator& prepared, const TorchTensor (&places)[3], const TorchTensor* bias) {
  const auto& [input, weight, output] = places;
  if (prepared.op == Operator::forward) {
    host::TensorView bias_view;
    if (bias) bias_view = channel_view(*bias);
    const auto compute = [&] {
      prepared.forward->run(input.data, weight.data, bias ? &bias_view : nullptr, output.data);
    };
    if (prepared.forward->is_tiny()) return compute();
    nb::gil_scoped_release release;
    return compute();
  }
  nb::gil_scoped_release release;
  const auto gradient = prepared.op == Operator::grad_input ? host::grad_input : host::grad_weight;
  const bool to_input = prepared.op == Operator::grad_input;
  gradient(prepared.problem, output.dtype, view_of(output), view_of(to_input ? weight : input),
           view_of(to_input ? input : weight));
}

}  // namespace

PyObject* run(const PreparedOperator& prepared, PyObject* a, PyObject* b, PyObject* bias,
              const TorchTensor& described_a, const TorchTensor& described_b, const TorchTensor* described_bias) {
  if (!prepared.native) {
    PyObject* arguments[3] = {a, b, bias ? bias : Py_None};
    return PyObject_Vectorcall(prepared.closure.ptr(), arguments, prepared.op == Operator::forward ? 3 : 2, nullptr);
  }
  PyObject* const like = prepared.op == Operator::grad_weight ? b : a;
  Owned result(new_result(like, prepared.size.ptr(), prepared.strides.ptr()));
  TorchTensor places[3];
  constexpr int result_place[kOperators] = {2, 0, 1};
  if (!result || !describe_new(result.object, places[result_place[int(prepared.op)]])) return nullptr;
  switch (prepared.op) {
    case Operator::forward:
      places[0] = described_a;
      places[1] = described_b;
      break;
    case Operator::grad_input:
      places[2] = described_a;
      places[1] = described_b;
      break;
    case Operator::grad_weight:
      places[2] = described_a;
      places[0] = described_b;
      break;
  }
  try {
    if (prepared.cuda.is_valid()) {
      run_on_gpu(prepared, like, places, described_bias);
    } else {
      run_on_cpu(prepared, places, described_bias);
    }
  } catch (const std::bad_alloc&) {
    PyErr_SetString(PyExc_MemoryError,
                    "convt: not enough memory for the packed filter and the patches of this transposed convolution");
    return nullptr;
  }
  return result.release();
}

PyObject* run_grad_bias(const BiasSum& sum, PyObject* grad_output, const TorchTensor& described) {
  Owned result(new_result(grad_output, sum.size, nullptr));
  TorchTensor to;
  if (!result || !describe_new(result.object, to)) return nullptr;
  if (sum.on_gpu) {
    sum_on_gpu(sum, grad_output, described, to);
    return result.release();
  }
  const host::TensorView view = channel_view(to);
  nb::gil_scoped_release release;
  host::grad_bias(described.dtype, view_of(described), view);
  return result.release();
}

}  // namespace convt::binding
