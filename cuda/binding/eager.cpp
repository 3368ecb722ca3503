#include <nanobind/stl/string.h>

#include <cstring>

#include "binding/bindings.hpp"
#include "binding/plan_cache.hpp"
#include "binding/problem.hpp"
#include "host/isa.hpp"
#include "host/parallel.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace convt::binding {
namespace {

enum Slot { kInput, kWeight, kBias, kStride, kPadding, kOutputPadding, kGroups, kDilation, kSlots };
constexpr const char* kNames[kSlots] = {"input",   "weight",         "bias",   "stride",
                                        "padding", "output_padding", "groups", "dilation"};
constexpr int kRanks = 3;

// Python objects that calls need, filled by `connect` and kept for good: they outlive the interpreter's teardown order.
struct Connection {
  PyObject* tensor_type;
  PyObject* parameter_type;
  PyObject* full[kRanks];  // convt's Python functions
  PyObject* aten[kRanks];  // torch.conv_transpose{1,2,3}d
  PyObject* aten_small[kRanks];  // torch._C._nn.slow_conv_transpose{2,3}d: no oneDNN, no setup; None in 1-D
  PyObject* resolve;  // (rank, input, weight, bias, ...) -> (plain, recorded, output_size)
  PyObject* grad_enabled;
  PyObject* watchers[6];  // callables that return something true when a call must pass the dispatcher
  int watcher_count;
  int op_watcher_count;  // the first ones ask for convt's op by name; to the others ATen's is as good
  PyObject* forward_ad;  // the dictionary that holds _current_level
  PyObject *current_level, *is_neg, *new_empty;
  PyObject* requires_grad;  // Tensor's descriptor: asked directly, it costs a third of an attribute look-up
  descrgetfunc get_requires_grad;
  PyObject* names[kSlots];
};
Connection* connection = nullptr;

// Never destroyed: plans hold Python objects, and the interpreter may end first.
PlanCache& plans() {
  static auto* const cache = new PlanCache();
  return *cache;
}

struct Call {
  PyObject* values[kSlots] = {};

  // False when the arguments are not laid out as the signature says; Python then words the error.
  bool parse(PyObject* const* arguments, Py_ssize_t count, PyObject* keywords) {
    if (count > kSlots) return false;
    for (Py_ssize_t i = 0; i < count; ++i) values[i] = arguments[i];
    if (keywords) {
      const Py_ssize_t named = PyTuple_Size(keywords);
      for (Py_ssize_t i = 0; i < named; ++i) {
        PyObject* const name = PyTuple_GetItem(keywords, i);
        int slot = 0;
        while (slot < kSlots && connection->names[slot] != name) ++slot;
        if (slot == kSlots || values[slot]) return false;
        values[slot] = arguments[count + i];
      }
    }
    return values[kInput] && values[kWeight];
  }
};

bool integer(PyObject* value, std::int64_t& to) {
  if (Py_TYPE(value) != &PyLong_Type) return false;
  to = PyLong_AsLongLong(value);
  if (to == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    return false;
  }
  return true;
}

bool integers(PyObject* value, int rank, std::int64_t standard, std::int64_t* to) {
  if (!value || Py_TYPE(value) != &PyTuple_Type) {
    if (value && !integer(value, standard)) return false;
    for (int axis = 0; axis < rank; ++axis) to[axis] = standard;
    return true;
  }
  if (PyTuple_Size(value) != rank) return false;
  for (int axis = 0; axis < rank; ++axis) {
    if (!integer(PyTuple_GetItem(value, axis), to[axis])) return false;
  }
  return true;
}

bool is_tensor(PyObject* value, bool parameter_too) {
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(value));
  return type == connection->tensor_type || (parameter_too && type == connection->parameter_type);
}

// A true answer, or an error, means no.
bool is_false(PyObject* owned) {
  if (!owned) {
    PyErr_Clear();
    return false;
  }
  const bool answer = owned == Py_False || owned == Py_None || PyObject_IsTrue(owned) == 0;
  Py_DECREF(owned);
  return answer;
}

// None of these wants to see the call pass PyTorch's dispatcher.
bool unwatched(int begin, int end) {
  for (int i = begin; i < end; ++i) {
    if (!is_false(PyObject_CallNoArgs(connection->watchers[i]))) return false;
  }
  return true;
}

bool in_forward_ad() {
  PyObject* const level = PyDict_GetItemWithError(connection->forward_ad, connection->current_level);
  std::int64_t value = 0;
  return !(level && integer(level, value) && value < 0);
}

bool wants_grad(PyObject* tensor) {
  return !is_false(
      connection->get_requires_grad(connection->requires_grad, tensor, reinterpret_cast<PyObject*>(Py_TYPE(tensor))));
}
bool is_negated(PyObject* tensor) {
  PyObject* const method = PyObject_GetAttr(tensor, connection->is_neg);
  if (!method) {
    PyErr_Clear();
    return true;
  }
  const bool plain = is_false(PyObject_CallNoArgs(method));
  Py_DECREF(method);
  return !plain;
}

PyObject* call_with(PyObject* function, PyObject* const* arguments, Py_ssize_t count, PyObject* keywords) {
  return PyObject_Vectorcall(function, arguments, std::size_t(count), keywords);
}

// slow_conv_transposeNd(input, weight, kernel_size, bias, stride, padding, output_padding, dilation)
constexpr int kSmallOrder[8] = {kInput, kWeight, kSlots, kBias, kStride, kPadding, kOutputPadding, kDilation};

void keep_small(Plan& plan, int rank, PyObject* const* values, const TorchTensor& weight) {
  nb::list kernel_size;
  bool square = true;
  for (int axis = 0; axis < rank; ++axis) {
    square = square && weight.sizes[axis + 2] == weight.sizes[2];
    kernel_size.append(weight.sizes[axis + 2]);
  }
  const nb::object standard[8] = {
      nb::none(),  nb::none(),  square ? nb::object(nb::int_(weight.sizes[2])) : nb::object(nb::tuple(kernel_size)),
      nb::none(),  nb::int_(1), nb::int_(0),
      nb::int_(0), nb::int_(1)};
  plan.small_count = 3;
  for (std::size_t i = 0; i < 8; ++i) {
    PyObject* const given = kSmallOrder[i] == kSlots ? nullptr : values[kSmallOrder[i]];
    if (i >= 3 && given) plan.small_count = i + 1;
    plan.small[i] = given && i > 3 ? nb::borrow(given) : standard[i];
  }
}

PyObject* call_small(int rank, const Plan& plan, PyObject* const* values) {
  PyObject* arguments[8];
  for (std::size_t i = 0; i < plan.small_count; ++i) arguments[i] = plan.small[i].ptr();
  arguments[0] = values[kInput];
  arguments[1] = values[kWeight];
  if (values[kBias]) arguments[3] = values[kBias];
  return PyObject_Vectorcall(connection->aten_small[rank - 1], arguments, plan.small_count, nullptr);
}

// Asks Python what to do with a problem that it has just computed, and remembers the answer.
void learn(const Key& key, int rank, PyObject* const* values, const TorchTensor& input, const TorchTensor& weight,
           const std::int64_t* shared, std::int64_t groups, PyObject* output, std::uint64_t generation) {
  nb::object answer = nb::borrow(connection->resolve)(
      rank, nb::handle(values[kInput]), nb::handle(values[kWeight]),
      values[kBias] ? nb::handle(values[kBias]) : nb::handle(Py_None), nb::make_tuple(shared[0], shared[1], shared[2]),
      nb::make_tuple(shared[3], shared[4], shared[5]), nb::make_tuple(shared[6], shared[7], shared[8]), groups,
      nb::make_tuple(shared[9], shared[10], shared[11]));
  auto plan = std::make_shared<Plan>();
  plan->plain = Route(nb::cast<int>(answer[0]));
  plan->recorded = Route(nb::cast<int>(answer[1]));
  plan->output_size = nb::tuple(nb::handle(output).attr("shape"));
  if (plan->recorded == Route::aten_small) keep_small(*plan, rank, values, weight);
  if (plan->plain == Route::native) {
    TorchTensor result;
    if (!read_tensor(output, result)) return;
    const auto list = [&](int first) { return Integers(shared + first, shared + first + rank); };
    const Problem problem = problem_of(input.sizes, weight, list(0), list(3), list(6), groups, list(9));
    // A contiguous result: what new_empty gives.
    std::int64_t stride = 1;
    for (int axis = result.rank; axis-- > 0; stride *= result.sizes[axis]) result.strides[axis] = stride;
    plan->forward =
        std::make_unique<host::PreparedForward>(problem, input.dtype, view_of(input), view_of(weight), view_of(result));
  }
  plans().insert(key, std::move(plan), generation);
}

PyObject* run_native(const Plan& plan, PyObject* input_object, const TorchTensor& input, const TorchTensor& weight,
                     const TorchTensor* bias) {
  PyObject* arguments[2] = {input_object, plan.output_size.ptr()};
  PyObject* const output = PyObject_VectorcallMethod(connection->new_empty, arguments, 2, nullptr);
  if (!output) return nullptr;
  TorchTensor result;
  if (!read_tensor(output, result)) {
    Py_DECREF(output);
    PyErr_SetString(PyExc_RuntimeError, "convt: torch returned a result that cannot be described");
    return nullptr;
  }
  host::TensorView bias_view;
  if (bias) bias_view = channel_view(*bias);
  try {
    if (plan.forward->is_tiny()) {
      plan.forward->run(input.data, weight.data, bias ? &bias_view : nullptr, result.data);
    } else {
      nb::gil_scoped_release release;
      plan.forward->run(input.data, weight.data, bias ? &bias_view : nullptr, result.data);
    }
  } catch (const std::bad_alloc&) {
    Py_DECREF(output);
    PyErr_SetString(PyExc_MemoryError,
                    "convt: not enough memory for the packed filter and the patches of this transposed convolution");
    return nullptr;
  }
  return output;
}

PyObject* answer(int rank, PyObject* const* arguments, Py_ssize_t count, PyObject* keywords) {
  const auto in_python = [&] { return call_with(connection->full[rank - 1], arguments, count, keywords); };
  Call call;
  TorchTensor input, weight, bias;
  Key key;
  std::int64_t shared[12] = {}, groups = 1;
  if (!call.parse(arguments, count, keywords)) return in_python();
  PyObject* const* const values = call.values;
  const bool has_bias = values[kBias] && values[kBias] != Py_None;
  if (!is_tensor(values[kInput], false) || !is_tensor(values[kWeight], true) ||
      (has_bias && !is_tensor(values[kBias], true)) ||
      !unwatched(connection->op_watcher_count, connection->watcher_count) || in_forward_ad() ||
      !integers(values[kStride], rank, 1, shared) || !integers(values[kPadding], rank, 0, shared + 3) ||
      !integers(values[kOutputPadding], rank, 0, shared + 6) || !integers(values[kDilation], rank, 1, shared + 9) ||
      (values[kGroups] && !integer(values[kGroups], groups)) || !read_tensor(values[kInput], input) ||
      !read_tensor(values[kWeight], weight) || (has_bias && !read_tensor(values[kBias], bias))) {
    return in_python();
  }
  if (!input.on_cpu || !weight.on_cpu || !input.supported_dtype || weight.dtype != input.dtype ||
      !weight.supported_dtype || input.rank != rank + 2 || weight.rank != rank + 2 || input.elements() == 0 ||
      weight.elements() == 0) {
    return in_python();
  }
  // A bias that is wrong in any way is for Python to explain.
  if (has_bias && (!bias.on_cpu || !bias.supported_dtype || bias.dtype != input.dtype || bias.rank != 1 ||
                   bias.sizes[0] != weight.sizes[1] * groups)) {
    return in_python();
  }
  // Wrapped tensors without storage of their own read as null.
  if (!input.data || !weight.data || (has_bias && !bias.data)) return in_python();

  std::int64_t* word = key.words.data();
  *word++ = rank | int(input.dtype) << 4 | int(has_bias) << 8;
  *word++ = host::num_threads();
  *word++ = groups;
  *word++ = std::int64_t(reinterpret_cast<std::uintptr_t>(&host::kernels()));
  std::memcpy(word, shared, sizeof shared);
  word += 12;
  for (const TorchTensor* tensor : {&input, &weight}) {
    for (int axis = 0; axis < tensor->rank; ++axis) *word++ = tensor->sizes[axis];
    for (int axis = 0; axis < tensor->rank; ++axis) *word++ = tensor->strides[axis];
  }
  const std::shared_ptr<const Plan> plan = plans().find(key);
  if (!plan) {
    const std::uint64_t generation = plans().generation();
    PyObject* const output = in_python();
    if (!output) return nullptr;
    try {
      learn(key, rank, values, input, weight, shared, groups, output, generation);
    } catch (nb::python_error& error) {
      // The result stands; the next call asks again.
      error.discard_as_unraisable("convt: planning a transposed convolution");
    }
    return output;
  }
  const bool recorded =
      !is_false(PyObject_CallNoArgs(connection->grad_enabled)) &&
      (wants_grad(values[kWeight]) || wants_grad(values[kInput]) || (has_bias && wants_grad(values[kBias])));
  switch (recorded ? plan->recorded : plan->plain) {
    case Route::native:
      if (!unwatched(0, connection->op_watcher_count)) return in_python();
      if (is_negated(values[kInput]) || is_negated(values[kWeight]) || (has_bias && is_negated(values[kBias])))
        return in_python();
      return run_native(*plan, values[kInput], input, weight, has_bias ? &bias : nullptr);
    case Route::aten:
      return call_with(connection->aten[rank - 1], arguments, count, keywords);
    case Route::aten_small:
      return call_small(rank, *plan, values);
    default:
      return in_python();
  }
}

template <int Rank>
PyObject* conv_transpose(PyObject*, PyObject* const* arguments, Py_ssize_t count, PyObject* keywords) {
  try {
    return answer(Rank, arguments, count, keywords);
  } catch (nb::python_error& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// The C function that stands in for a Python function of the same signature, with its documentation.
template <int Rank>
nb::object stand_in() {
  // Lives as long as the function it describes: for good.
  static const std::string name = "conv_transpose" + std::to_string(Rank) + "d";
  static const std::string documentation =
      name + "(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)\n--\n\n" +
      nb::cast<std::string>(nb::str(nb::handle(connection->full[Rank - 1]).attr("__doc__")));
  static PyMethodDef method = {name.c_str(),
                               reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&conv_transpose<Rank>)),
                               METH_FASTCALL | METH_KEYWORDS, documentation.c_str()};
  return nb::steal(PyCFunction_NewEx(&method, nullptr, nb::str("convt").ptr()));
}

nb::tuple connect(nb::dict from) {
  auto* const made = new Connection{};
  const auto keep = [&](const char* name) { return nb::object(from[name]).release().ptr(); };
  const auto intern = [](const char* name) { return PyUnicode_InternFromString(name); };
  made->tensor_type = keep("tensor_type");
  made->parameter_type = keep("parameter_type");
  nb::tuple full = from["full"], aten = from["aten"], aten_small = from["aten_small"], watchers = from["watchers"];
  for (int i = 0; i < kRanks; ++i) {
    made->full[i] = nb::object(full[i]).release().ptr();
    made->aten[i] = nb::object(aten[i]).release().ptr();
    made->aten_small[i] = nb::object(aten_small[i]).release().ptr();
  }
  made->watcher_count = int(watchers.size());
  if (watchers.size() > std::size(made->watchers)) throw nb::value_error("too many watchers");
  for (int i = 0; i < made->watcher_count; ++i) made->watchers[i] = nb::object(watchers[i]).release().ptr();
  made->op_watcher_count = nb::cast<int>(from["op_watchers"]);
  made->resolve = keep("resolve");
  made->grad_enabled = keep("grad_enabled");
  made->forward_ad = keep("forward_ad");
  made->current_level = intern("_current_level");
  made->requires_grad = keep("requires_grad");
  made->get_requires_grad =
      reinterpret_cast<descrgetfunc>(PyType_GetSlot(Py_TYPE(made->requires_grad), Py_tp_descr_get));
  if (!made->get_requires_grad) throw nb::type_error("requires_grad must be a descriptor");
  made->is_neg = intern("is_neg");
  made->new_empty = intern("new_empty");
  for (int slot = 0; slot < kSlots; ++slot) made->names[slot] = intern(kNames[slot]);
  connection = made;
  return nb::make_tuple(stand_in<1>(), stand_in<2>(), stand_in<3>());
}

}  // namespace

void bind_eager(nb::module_& module) {
  module.def(
      "connect", &connect, "objects"_a,
      "Hands over the Python objects that the eager entry needs; returns conv_transpose{1,2,3}d as C functions.");
  module.def(
      "forget_plans", [] { plans().clear(); }, "Drops what the eager entry has learned, after a change of settings.");
}

}  // namespace convt::binding
