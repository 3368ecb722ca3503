#include <nanobind/stl/string.h>

#include "binding/bindings.hpp"
#include "binding/plans.hpp"
#include "binding/torch_calls.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace convt::binding {
namespace {

enum Slot { kInput, kWeight, kBias, kStride, kPadding, kOutputPadding, kGroups, kDilation, kSlots };

// A call of the public functions, or of the inner op, which has the same arguments and is always batched.
struct Call {
  PyObject* values[kSlots] = {};
  bool has_bias = false;
  Numbers numbers;
  TorchTensor input, weight, bias;

  // False when the arguments are not laid out as the signature says; Python then words the error.
  bool parse(PyObject* const* arguments, Py_ssize_t count, PyObject* keywords) {
    if (count > kSlots) return false;
    for (Py_ssize_t i = 0; i < count; ++i) values[i] = arguments[i];
    if (keywords) {
      const Py_ssize_t named = PyTuple_Size(keywords);
      for (Py_ssize_t i = 0; i < named; ++i) {
        PyObject* const name = PyTuple_GetItem(keywords, i);
        int slot = 0;
        while (slot < kSlots && connected().names[slot] != name) ++slot;
        if (slot == kSlots || values[slot]) return false;
        values[slot] = arguments[count + i];
      }
    }
    has_bias = values[kBias] && values[kBias] != Py_None;
    return values[kInput] && values[kWeight];
  }

  bool parse_numbers(int rank) {
    numbers.rank = rank;
    constexpr int slots[4] = {kStride, kPadding, kOutputPadding, kDilation};
    for (int which = 0; which < 4; ++which) {
      PyObject* const value = values[slots[which]];
      std::int64_t one;
      if (!value) continue;
      if (integer(value, one)) {
        for (int axis = 0; axis < rank; ++axis) numbers.lists[which][axis] = one;
      } else if (!integers(value, rank, numbers.lists[which])) {
        return false;
      }
    }
    return !values[kGroups] || integer(values[kGroups], numbers.groups);
  }

  bool tensors_only() const {
    return is_tensor(values[kInput], true) && is_tensor(values[kWeight], true) &&
           (!has_bias || is_tensor(values[kBias], true));
  }

  // Batched tensors of one device and of dtypes that are ours, with elements and storage of their own: wrapped ones read as
  // null. Whatever is wrong with the others is for Python to explain.
  bool describe_tensors(int rank) {
    if (!describe(values[kInput], input) || !describe(values[kWeight], weight)) return false;
    if (input.device_type == TorchTensor::Place::elsewhere || !beside_input(weight) || !input.supported_dtype ||
        !weight.supported_dtype || input.rank != rank + 2 || weight.rank != rank + 2 || input.elements() == 0 ||
        weight.elements() == 0 || !input.data || !weight.data) {
      return false;
    }
    if (!has_bias) return true;
    return describe(values[kBias], bias) && beside_input(bias) && bias.supported_dtype && bias.rank == 1 &&
           bias.sizes[0] == weight.sizes[1] * numbers.groups && bias.data;
  }
  bool beside_input(const TorchTensor& tensor) const {
    return tensor.device_type == input.device_type && tensor.device_index == input.device_index;
  }

  bool any_negated() const {
    return is_negated(values[kInput]) || is_negated(values[kWeight]) || (has_bias && is_negated(values[kBias]));
  }
  bool any_dual() const {
    return is_dual(values[kInput]) || is_dual(values[kWeight]) || (has_bias && is_dual(values[kBias]));
  }
  bool wants_any_grad() const {
    return wants_grad(values[kWeight]) || wants_grad(values[kInput]) || (has_bias && wants_grad(values[kBias]));
  }
  const TorchTensor* bias_or_null() const { return has_bias ? &bias : nullptr; }
};

// slow_conv_transposeNd(input, weight, kernel_size, bias, stride, padding, output_padding, dilation)
constexpr int kSmallOrder[8] = {kInput, kWeight, kSlots, kBias, kStride, kPadding, kOutputPadding, kDilation};

void keep_small(Plan& plan, const Call& call) {
  nb::list kernel_size;
  bool square = true;
  for (int axis = 2; axis < call.weight.rank; ++axis) {
    square = square && call.weight.sizes[axis] == call.weight.sizes[2];
    kernel_size.append(call.weight.sizes[axis]);
  }
  const nb::object size = square ? nb::object(nb::int_(call.weight.sizes[2])) : nb::object(nb::tuple(kernel_size));
  const nb::object standard[8] = {nb::none(),  nb::none(),  size,        nb::none(),
                                  nb::int_(1), nb::int_(0), nb::int_(0), nb::int_(1)};
  plan.small_count = 3;
  for (std::size_t i = 0; i < 8; ++i) {
    PyObject* const given = kSmallOrder[i] == kSlots ? nullptr : call.values[kSmallOrder[i]];
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
  return PyObject_Vectorcall(connected().aten_small[rank - 1], arguments, plan.small_count, nullptr);
}

// Asks Python what to do with a problem that it has just computed, and remembers the answer.
void learn(const Key& key, const Call& call, int cast_to, std::uint64_t generation) {
  const nb::object dtype = cast_to < 0 ? nb::none() : nb::borrow(connected().dtypes[cast_to]);
  const nb::tuple answer = nb::cast<nb::tuple>(nb::borrow(connected().resolve)(
      nb::handle(call.values[kInput]), nb::handle(call.values[kWeight]),
      call.has_bias ? nb::handle(call.values[kBias]) : nb::handle(Py_None), geometry_of(call.numbers), dtype));
  auto plan = std::make_shared<Plan>();
  plan->plain = Route(nb::cast<int>(answer[0]));
  plan->recorded = Route(nb::cast<int>(answer[1]));
  if (plan->recorded == Route::aten_small) keep_small(*plan, call);
  if (!answer[2].is_none()) {
    plan->owner[0] =
        prepare(Operator::forward, nb::cast<nb::tuple>(answer[2]), call.numbers, {&call.input, &call.weight, nullptr});
    plan->operators[0] = nb::inst_ptr<PreparedOperator>(plan->owner[0]);
    plan->form = answer[3];
  }
  plans().insert(key, std::move(plan), generation);
}

PyObject* record(const Plan& plan, PyObject* const* values) {
  PyObject* arguments[5] = {plan.owner[0].ptr(), plan.form.ptr(), values[kInput], values[kWeight],
                            values[kBias] ? values[kBias] : Py_None};
  return PyObject_Vectorcall(connected().record, arguments, 5, nullptr);
}

// function: conv_transposeNd itself. op: the inner op as the dispatcher calls it, where whoever watches has seen it and
// autocast is dealt with. graph: the inner op in compiled code, which passes the dispatcher only when somebody watches.
enum class Entry { function, op, graph };

PyObject* answer(Entry entry, int rank, PyObject* const* arguments, Py_ssize_t count, PyObject* keywords);

// The same call with its tensors as autocast wants them.
PyObject* answer_cast(int rank, const Call& call, int dtype) {
  PyObject* values[kSlots];
  PyObject* names[kSlots];
  Owned cast[3] = {Owned(nullptr), Owned(nullptr), Owned(nullptr)};
  const TorchTensor* const tensors[3] = {&call.input, &call.weight, &call.bias};
  Py_ssize_t count = 0;
  for (int slot = 0; slot < kSlots; ++slot) {
    if (!call.values[slot]) continue;
    values[count] = call.values[slot];
    names[count] = connected().names[slot];
    const bool is_tensor = slot < kBias || (slot == kBias && call.has_bias);
    if (is_tensor && tensors[slot]->dtype != host::DType(dtype)) {
      PyObject* to[2] = {call.values[slot], connected().dtypes[dtype]};
      cast[slot].object = PyObject_VectorcallMethod(connected().to, to, 2, nullptr);
      if (!cast[slot]) return nullptr;
      values[count] = cast[slot].object;
    }
    ++count;
  }
  const Owned keywords(PyTuple_New(count - 2));
  if (!keywords) return nullptr;
  for (Py_ssize_t at = 2; at < count; ++at) {
    Py_INCREF(names[at]);
    PyTuple_SetItem(keywords.object, at - 2, names[at]);
  }
  return answer(Entry::function, rank, values, 2, keywords.object);
}

PyObject* answer(Entry entry, int rank, PyObject* const* arguments, Py_ssize_t count, PyObject* keywords) {
  const Connection& torch = connected();
  const auto in_python = [&] {
    PyObject* const otherwise = entry == Entry::function ? torch.full[rank - 1]
                                : entry == Entry::op     ? torch.inner[0]
                                                         : torch.overloads[0];
    return PyObject_Vectorcall(otherwise, arguments, std::size_t(count), keywords);
  };
  Call call;
  if (!call.parse(arguments, count, keywords) || !call.tensors_only() ||
      !unwatched(torch.op_watcher_count, torch.watcher_count) || in_forward_ad() ||
      (entry == Entry::op && call.any_dual()) || !call.parse_numbers(rank) || !call.describe_tensors(rank)) {
    return in_python();
  }
  int cast_to = -1;
  if (entry == Entry::function) {
    bool known = true;
    if (const auto dtype = autocast_dtype(call.input, known)) cast_to = int(*dtype);
    if (!known) return in_python();
  }
  const auto dtype_of = [&](const TorchTensor& tensor) {
    return cast_to < 0 || tensor.dtype == DType::float64 ? tensor.dtype : DType(cast_to);
  };
  if (dtype_of(call.weight) != dtype_of(call.input) || (call.has_bias && dtype_of(call.bias) != dtype_of(call.input))) {
    return in_python();
  }
  // Nothing left to cast: the plan is that of a call without autocast, which Python's inner op or such a call has made.
  const auto stays = [&](const TorchTensor& tensor) { return dtype_of(tensor) == tensor.dtype; };
  if (stays(call.input) && stays(call.weight) && (!call.has_bias || stays(call.bias))) cast_to = -1;
  const Key key = key_of({.question = Question::forward,
                          .numbers = call.numbers,
                          .tensors = {&call.input, &call.weight},
                          .bias = call.bias_or_null(),
                          .cast_to = cast_to});
  const Plans::Found plan = plans().find(key);
  if (!plan) {
    const std::uint64_t generation = plans().generation();
    PyObject* const output = in_python();
    if (!output || entry == Entry::graph) return output;   // the dispatcher has asked the op, which has learned
    try {
      learn(key, call, cast_to, generation);
    } catch (nb::python_error& error) {
      // The result stands; the next call asks again.
      error.discard_as_unraisable("convt: planning a transposed convolution");
    }
    return output;
  }
  const bool recorded = ask(torch.grad_enabled) && call.wants_any_grad();
  // The inner op has no node in C, and a profiler wants to be told who computes it.
  if (entry != Entry::function && (recorded || !unwatched(0, torch.op_watcher_count))) return in_python();
  const Route route = recorded ? plan->recorded : plan->plain;
  switch (route) {
    case Route::prepared:
      if (!unwatched(0, torch.op_watcher_count) || call.any_negated()) return in_python();
      if (recorded) return record(*plan, call.values);
      return run(*plan->operators[0], call.values[kInput], call.values[kWeight],
                 call.has_bias ? call.values[kBias] : nullptr, call.input, call.weight, call.bias_or_null());
    case Route::aten:
      if (entry != Entry::function && ask(torch.any_autocast)) return in_python();   // ATen's function would obey it
      return PyObject_Vectorcall(torch.aten[rank - 1], arguments, std::size_t(count), keywords);
    case Route::aten_small:
      return call_small(rank, *plan, call.values);
    case Route::cast:
      return unwatched(0, torch.op_watcher_count) ? answer_cast(rank, call, cast_to) : in_python();
    default:
      return in_python();
  }
}

template <class Answer>
PyObject* guarded(Answer&& answer) {
  try {
    return answer();
  } catch (nb::python_error& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

Py_ssize_t rank_of(PyObject* list) {
  return PyList_Check(list) ? PyList_Size(list) : PyTuple_Check(list) ? PyTuple_Size(list) : 0;
}

template <int Rank>
PyObject* conv_transpose(PyObject*, PyObject* const* arguments, Py_ssize_t count, PyObject* keywords) {
  return guarded([&] { return answer(Entry::function, Rank, arguments, count, keywords); });
}

// The rank is that of the stride.
template <Entry entry>
PyObject* forward_op(PyObject*, PyObject* const* arguments, Py_ssize_t count, PyObject* keywords) {
  return guarded([&]() -> PyObject* {
    const Py_ssize_t rank = count > kStride ? rank_of(arguments[kStride]) : 0;
    if (rank < 1 || rank > kRanks) {
      PyObject* const otherwise = entry == Entry::op ? connected().inner[0] : connected().overloads[0];
      return PyObject_Vectorcall(otherwise, arguments, std::size_t(count), keywords);
    }
    return answer(entry, int(rank), arguments, count, keywords);
  });
}

PyMethodDef method_of(const char* name, PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*),
                      const char* documentation) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function)), METH_FASTCALL | METH_KEYWORDS,
          documentation};
}

nb::object c_function(PyMethodDef& method) {
  return nb::steal(PyCFunction_NewEx(&method, nullptr, nb::str("convt").ptr()));
}

// The C function that stands in for a Python function of the same signature, with its documentation.
template <int Rank>
nb::object stand_in() {
  // Lives as long as the function it describes: for good.
  static const std::string name = "conv_transpose" + std::to_string(Rank) + "d";
  static const std::string documentation =
      name +
      "(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, *, "
      "epilogue=None)\n--\n\n" +
      nb::cast<std::string>(nb::str(nb::handle(connected().full[Rank - 1]).attr("__doc__")));
  static PyMethodDef method = method_of(name.c_str(), &conv_transpose<Rank>, documentation.c_str());
  return c_function(method);
}

nb::tuple connect(const nb::dict& from) {
  set_connection(from);
  return nb::make_tuple(stand_in<1>(), stand_in<2>(), stand_in<3>());
}

}  // namespace

void bind_eager(nb::module_& module) {
  module.def(
      "connect", &connect, "objects"_a,
      "Hands over the Python objects that the eager entry needs; returns conv_transpose{1,2,3}d as C functions.");
  static PyMethodDef op = method_of("forward", &forward_op<Entry::op>, "An inner op as the dispatcher calls it.");
  module.attr("forward_op") = c_function(op);
  static PyMethodDef in_graph =
      method_of("forward", &forward_op<Entry::graph>, "An inner op for compiled code: the dispatcher's turn is taken.");
  module.attr("forward_in_graph") = c_function(in_graph);
  module.def("forget_plans", [] { plans().clear(); }, "Drops what the eager entry has learned.");
  module.def(
      "obey", [](std::int64_t settings) { plans().obey(settings); }, "settings"_a,
      "Names the settings that hold from now on: plans made under one name are used under no other.");
  module.def(
      "plan_cache", [] { return nb::make_tuple(plans().size(), plans().capacity()); },
      "How many plans the eager entry holds, and how many it may hold.");
  module.def(
      "rehearse",
      [](nb::object device, nb::object launch, nb::object raw_stream) {
        plans().clear();
        if (device.is_none()) return end_rehearsal();
        rehearse({nb::cast<int>(device), launch.release().ptr(), raw_stream.release().ptr()});
      },
      "device"_a.none(), "launch"_a.none() = nb::none(), "raw_stream"_a.none() = nb::none(),
      "For tests: tensors of the CPU count as those of GPU `device` in the eager entry, and launch is called in place "
      "of "
      "cuda_run. None ends it.");
  bind_inner(module);
}

}  // namespace convt::binding
