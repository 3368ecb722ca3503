#include "binding/torch_calls.hpp"

#include <atomic>
#include <iterator>

namespace nb = nanobind;

namespace convt::binding {
namespace {

constexpr const char* kArguments[8] = {"input",   "weight",         "bias",   "stride",
                                       "padding", "output_padding", "groups", "dilation"};

// Set once, before there is a function that reads it.
Connection* connection = nullptr;
std::atomic<const Rehearsal*> pretended{nullptr};

}  // namespace

void set_connection(const nb::dict& from) {
  auto* const made = new Connection{};
  const auto own = [](nb::handle value) { return nb::borrow(value).release().ptr(); };
  const auto keep = [&](const char* name) { return own(from[name]); };
  const auto keep_all = [&](const char* name, auto& to) {
    const nb::tuple values = nb::borrow<nb::tuple>(from[name]);
    if (values.size() > std::size(to)) throw nb::value_error((std::string(name) + ": too many").c_str());
    for (std::size_t i = 0; i < values.size(); ++i) to[i] = own(values[i]);
    return int(values.size());
  };
  const auto intern = [](const char* name) { return PyUnicode_InternFromString(name); };
  made->tensor_type = keep("tensor_type");
  made->parameter_type = keep("parameter_type");
  keep_all("full", made->full);
  keep_all("aten", made->aten);
  keep_all("aten_small", made->aten_small);
  keep_all("resolve_operator", made->resolve_operator);
  keep_all("inner", made->inner);
  keep_all("overloads", made->overloads);
  keep_all("dtypes", made->dtypes);
  keep_all("device_types", made->device_types);
  made->watcher_count = keep_all("watchers", made->watchers);
  made->op_watcher_count = nb::cast<int>(from["op_watchers"]);
  made->resolve = keep("resolve");
  made->resolve_gradients = keep("resolve_gradients");
  made->record = keep("record");
  made->grad_enabled = keep("grad_enabled");
  made->any_autocast = keep("any_autocast");
  made->autocast_enabled = keep("autocast_enabled");
  made->autocast_dtype = keep("autocast_dtype");
  made->precision = keep("precision");
  made->raw_stream = keep("raw_stream");
  made->forward_ad = keep("forward_ad");
  made->current_level = intern("_current_level");
  made->unpack_dual = keep("unpack_dual");
  made->of_level = nb::make_tuple("level").release().ptr();
  made->lowest_level = nb::int_(0).release().ptr();
  made->uint8 = keep("uint8");
  made->requires_grad = keep("requires_grad");
  made->get_requires_grad =
      reinterpret_cast<descrgetfunc>(PyType_GetSlot(Py_TYPE(made->requires_grad), Py_tp_descr_get));
  if (!made->get_requires_grad) throw nb::type_error("requires_grad must be a descriptor");
  made->is_neg = intern("is_neg");
  made->new_empty = intern("new_empty");
  made->new_empty_strided = intern("new_empty_strided");
  made->to = intern("to");
  made->sum = intern("sum");
  made->of_bytes = nb::make_tuple("dtype").release().ptr();
  for (std::size_t slot = 0; slot < std::size(kArguments); ++slot) made->names[slot] = intern(kArguments[slot]);
  connection = made;
}

const Connection& connected() { return *connection; }

void rehearse(const Rehearsal& as) {
  pretended = new Rehearsal(as);
}   // kept: another thread may be reading the last one
void end_rehearsal() { pretended = nullptr; }
const Rehearsal* rehearsal() { return pretended.load(std::memory_order_acquire); }

bool integer(PyObject* value, std::int64_t& to) {
  if (Py_TYPE(value) != &PyLong_Type) return false;
  to = PyLong_AsLongLong(value);
  if (to == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    return false;
  }
  return true;
}

bool integers(PyObject* value, int count, std::int64_t* to) {
  if (PyTuple_Check(value)) {
    if (PyTuple_Size(value) != count) return false;
    for (int i = 0; i < count; ++i) {
      if (!integer(PyTuple_GetItem(value, i), to[i])) return false;
    }
    return true;
  }
  if (!PyList_Check(value) || PyList_Size(value) != count) return false;
  for (int i = 0; i < count; ++i) {
    const Owned item(PySequence_GetItem(value, i));   // owned: another thread may change a list
    if (!item || !integer(item.object, to[i])) {
      PyErr_Clear();
      return false;
    }
  }
  return true;
}

bool is_false(PyObject* owned) {
  if (!owned) {
    PyErr_Clear();
    return false;
  }
  const int truth = owned == Py_False || owned == Py_None ? 0 : PyObject_IsTrue(owned);
  if (truth < 0) PyErr_Clear();
  Py_DECREF(owned);
  return truth == 0;
}

bool ask(PyObject* function) { return !is_false(PyObject_CallNoArgs(function)); }

bool unwatched(int begin, int end) {
  for (int i = begin; i < end; ++i) {
    if (ask(connection->watchers[i])) return false;
  }
  return true;
}

bool in_forward_ad() {
  const Owned level(PyObject_GetItem(connection->forward_ad, connection->current_level));
  std::int64_t value = 0;
  if (level && integer(level.object, value)) return value >= 0;
  PyErr_Clear();
  return true;
}

bool is_dual(PyObject* tensor) {
  PyObject* arguments[2] = {tensor, connection->lowest_level};
  const Owned pair(PyObject_Vectorcall(connection->unpack_dual, arguments, 1, connection->of_level));
  const Owned tangent(pair ? PySequence_GetItem(pair.object, 1) : nullptr);
  if (tangent) return tangent.object != Py_None;
  PyErr_Clear();
  return true;
}

bool is_tensor(PyObject* value, bool parameter_too) {
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(value));
  return type == connection->tensor_type || (parameter_too && type == connection->parameter_type);
}

bool wants_grad(PyObject* tensor) {
  return !is_false(
      connection->get_requires_grad(connection->requires_grad, tensor, reinterpret_cast<PyObject*>(Py_TYPE(tensor))));
}

bool is_negated(PyObject* tensor) {
  return !is_false(PyObject_VectorcallMethod(connection->is_neg, &tensor, 1, nullptr));
}

bool describe(PyObject* tensor, TorchTensor& to) {
  if (!read_tensor(tensor, to)) return false;
  if (const Rehearsal* const as = rehearsal()) to.place(TorchTensor::Place::cuda, as->device);
  return true;
}

std::optional<host::DType> autocast_dtype(const TorchTensor& head, bool& known) {
  known = true;
  if (!ask(connection->any_autocast)) return std::nullopt;
  PyObject* const type = connection->device_types[head.on_cuda()];
  if (is_false(PyObject_Vectorcall(connection->autocast_enabled, &type, 1, nullptr))) return std::nullopt;
  const Owned dtype(PyObject_Vectorcall(connection->autocast_dtype, &type, 1, nullptr));
  for (int at = 0; at < kDTypes; ++at) {
    if (connection->dtypes[at] == dtype.object) return host::DType(at);
  }
  PyErr_Clear();
  known = false;
  return std::nullopt;
}

bool torch_allows_tf32() {
  const Owned precision(PyObject_CallNoArgs(connection->precision));
  if (!precision) throw nb::python_error();
  return PyUnicode_Check(precision.object) && PyUnicode_CompareWithASCIIString(precision.object, "tf32") == 0;
}

}  // namespace convt::binding
