#include <nanobind/stl/string.h>

#include "binding/plans.hpp"
#include "binding/torch_calls.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace convt::binding {
namespace {

bool is_ordinary(PyObject* value, const TorchTensor* head, TorchTensor& to) {
  return is_tensor(value, true) && describe(value, to) && to.supported_dtype && to.data && to.elements() > 0 &&
         to.device_type != TorchTensor::Place::elsewhere && !is_negated(value) &&
         (!head || (to.dtype == head->dtype && to.device_type == head->device_type &&
                    to.device_index == head->device_index && to.rank == head->rank));
}

bool read_numbers(PyObject* stride, PyObject* padding, PyObject* output_padding, PyObject* groups, PyObject* dilation,
                  Numbers& to) {
  return integers(stride, to.rank, to.lists[kStrideList]) && integers(padding, to.rank, to.lists[kPaddingList]) &&
         integers(output_padding, to.rank, to.lists[kOutputPaddingList]) &&
         integers(dilation, to.rank, to.lists[kDilationList]) && integer(groups, to.groups);
}

// Nothing that has to see every op, and nothing that has to be recorded.
bool goes_unseen() {
  const Connection& torch = connected();
  return unwatched(0, torch.watcher_count) && !in_forward_ad();
}

const PreparedOperator* keep(Plan& plan, int which, nb::object owner) {
  plan.owner[which] = std::move(owner);
  return plan.operators[which] = nb::inst_ptr<PreparedOperator>(plan.owner[which]);
}

// What a node needs of both gradients and of the bias', in one look-up.
struct Gradients {
  PyObject *grad_output, *input, *weight;
  TorchTensor described_output, described_input, described_weight;
  Numbers numbers;
  int wanted;   // bits: input, weight, bias

  Plans::Found learn() const {
    const nb::tuple answer = nb::cast<nb::tuple>(nb::borrow(connected().resolve_gradients)(
        nb::handle(grad_output), nb::handle(input), nb::handle(weight), geometry_of(numbers), wanted));
    auto plan = std::make_shared<Plan>();
    if (!answer[0].is_none()) {
      keep(*plan, 0,
           prepare(Operator::grad_input, nb::cast<nb::tuple>(answer[0]), numbers,
                   {nullptr, &described_weight, &described_output}));
    }
    if (!answer[1].is_none()) {
      keep(*plan, 1,
           prepare(Operator::grad_weight, nb::cast<nb::tuple>(answer[1]), numbers,
                   {&described_input, nullptr, &described_output}));
    }
    plan->weight_first = nb::cast<bool>(answer[2]);
    if (!answer[3].is_none()) plan->joint = answer[3];
    if (!answer[4].is_none()) plan->bias_size = answer[4];
    plan->bias_axes = answer[5];
    if (!answer[6].is_none()) {
      plan->bias_sum = answer[6];
      const auto bytes = nb::cast<std::int64_t>(plan->bias_sum.attr("workspace_bytes"));
      if (bytes > 0) plan->bias_workspace = nb::make_tuple(bytes);
    }
    plan->bias_first = nb::cast<bool>(answer[7]);
    return plan;
  }

  PyObject* bias_of(const Plan& plan) const {
    if (plan.bias_size.is_valid()) {
      return run_grad_bias({plan.bias_size.ptr(), plan.bias_sum.ptr(), plan.bias_workspace.ptr()}, grad_output,
                           described_output);
    }
    PyObject* arguments[2] = {grad_output, plan.bias_axes.ptr()};
    return PyObject_VectorcallMethod(connected().sum, arguments, 2, nullptr);
  }

  // (grad_input, grad_weight, grad_bias), None where nobody asked.
  PyObject* compute(const Plan& plan) const {
    Owned results[3] = {Owned(nullptr), Owned(nullptr), Owned(nullptr)};
    const auto sum_bias = [&] { return !(wanted & 4) || (results[2].object = bias_of(plan)); };
    if (plan.bias_first && !sum_bias()) return nullptr;
    if (plan.joint.is_valid()) {
      PyObject* arguments[3] = {grad_output, input, weight};
      const Owned both(PyObject_Vectorcall(plan.joint.ptr(), arguments, 3, nullptr));
      if (!both) return nullptr;
      for (int which = 0; which < 2; ++which) results[which].object = PySequence_GetItem(both.object, which);
    }
    for (const int turn : {0, 1}) {
      const int which = plan.weight_first ? 1 - turn : turn;
      if (!plan.operators[which]) continue;
      results[which].object = run(*plan.operators[which], grad_output, which == 0 ? weight : input, nullptr,
                                  described_output, which == 0 ? described_weight : described_input, nullptr);
      if (!results[which]) return nullptr;
    }
    if (!plan.bias_first && !sum_bias()) return nullptr;
    const auto given = [&](int which) { return results[which] ? results[which].object : Py_None; };
    return PyTuple_Pack(3, given(0), given(1), given(2));
  }
};

nb::object gradients(nb::handle grad_output, nb::handle input, nb::handle weight, const nb::tuple& geometry,
                     int wanted) {
  Gradients asked{grad_output.ptr(), input.ptr(), weight.ptr(), {}, {}, {}, {}, wanted};
  if (ask(connected().grad_enabled) || !goes_unseen() ||
      !is_ordinary(asked.grad_output, nullptr, asked.described_output) ||
      !is_ordinary(asked.input, &asked.described_output, asked.described_input) ||
      !is_ordinary(asked.weight, &asked.described_output, asked.described_weight)) {
    return nb::none();
  }
  asked.numbers.rank = asked.described_output.rank - 2;
  if (geometry.size() != 5 || !read_numbers(geometry[0].ptr(), geometry[1].ptr(), geometry[2].ptr(), geometry[3].ptr(),
                                            geometry[4].ptr(), asked.numbers)) {
    return nb::none();
  }
  const Key key = key_of({.question = Question::gradients,
                          .flags = wanted,
                          .numbers = asked.numbers,
                          .tensors = {&asked.described_output, &asked.described_input, &asked.described_weight}});
  Plans::Found plan = plans().find(key);
  if (!plan) {
    const std::uint64_t generation = plans().generation();
    plan = asked.learn();
    plans().insert(key, plan, generation);
  }
  PyObject* const results = asked.compute(*plan);
  if (!results) throw nb::python_error();
  return nb::steal(results);
}

// ---- the inner ops of a graph: one gradient by itself --------------------------------------------------------------

// grad_input(grad_output, weight, <numbers>, channels_last) and grad_weight(grad_output, input, kernel_size, <numbers>,
// channels_last), as the dispatcher calls them.
PyObject* gradient_op(Operator op, bool in_graph, PyObject* const* arguments, Py_ssize_t count) {
  const Connection& torch = connected();
  const int first = op == Operator::grad_weight ? 3 : 2;
  const auto in_python = [&] {
    PyObject* const otherwise = in_graph ? torch.overloads[int(op)] : torch.inner[int(op)];
    return PyObject_Vectorcall(otherwise, arguments, std::size_t(count), nullptr);
  };
  TorchTensor grad_output, other;
  Numbers numbers;
  std::int64_t kernel_size[3] = {};
  if (count != first + 6 || !unwatched(0, torch.watcher_count) || in_forward_ad() ||
      (!in_graph && (is_dual(arguments[0]) || is_dual(arguments[1]))) ||
      !is_ordinary(arguments[0], nullptr, grad_output) || !is_ordinary(arguments[1], &grad_output, other)) {
    return in_python();
  }
  numbers.rank = grad_output.rank - 2;
  PyObject* const* const shared = arguments + first;
  if (numbers.rank < 1 || !read_numbers(shared[0], shared[1], shared[2], shared[3], shared[4], numbers) ||
      (first == 3 && !integers(arguments[2], numbers.rank, kernel_size)) ||
      (shared[5] != Py_True && shared[5] != Py_False) ||
      (ask(torch.grad_enabled) && (wants_grad(arguments[0]) || wants_grad(arguments[1])))) {
    return in_python();
  }
  TorchTensor filter;   // the sizes that no tensor has
  filter.rank = first == 3 ? numbers.rank : 0;
  for (int axis = 0; axis < filter.rank; ++axis) filter.sizes[axis] = kernel_size[axis];
  const Key key = key_of({.question = op == Operator::grad_weight ? Question::grad_weight : Question::grad_input,
                          .flags = shared[5] == Py_True,
                          .numbers = numbers,
                          .tensors = {&grad_output, &other, &filter}});
  Plans::Found plan = plans().find(key);
  if (!plan) {
    const std::uint64_t generation = plans().generation();
    const nb::tuple answer = nb::cast<nb::tuple>(nb::borrow(torch.resolve_operator[int(op)])(
        nb::handle(arguments[0]), nb::handle(arguments[1]), nb::handle(first == 3 ? arguments[2] : Py_None),
        geometry_of(numbers), nb::handle(shared[5])));
    auto made = std::make_shared<Plan>();
    const TorchTensor* const places[3] = {first == 3 ? &other : nullptr, first == 3 ? nullptr : &other, &grad_output};
    keep(*made, 0, prepare(op, answer, numbers, places));
    plan = std::move(made);
    plans().insert(key, plan, generation);
  }
  return run(*plan->operators[0], arguments[0], arguments[1], nullptr, grad_output, other, nullptr);
}

template <Operator op, bool in_graph>
PyObject* gradient(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  try {
    return gradient_op(op, in_graph, arguments, count);
  } catch (nb::python_error& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

template <Operator op, bool in_graph>
nb::object gradient_function() {
  static PyMethodDef method = {name_of(op),
                               reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&gradient<op, in_graph>)),
                               METH_FASTCALL, "An inner op, as the dispatcher or as compiled code calls it."};
  return nb::steal(PyCFunction_NewEx(&method, nullptr, nb::str("convt").ptr()));
}

nb::object call_prepared(const PreparedOperator& prepared, nb::handle a, nb::handle b, nb::handle bias) {
  TorchTensor described[3];
  PyObject* const given = bias.is_none() ? nullptr : bias.ptr();
  if (!describe(a.ptr(), described[0]) || !describe(b.ptr(), described[1]) ||
      (given && !describe(given, described[2]))) {
    throw nb::type_error("convt: a tensor that cannot be described");
  }
  PyObject* const result =
      run(prepared, a.ptr(), b.ptr(), given, described[0], described[1], given ? &described[2] : nullptr);
  if (!result) throw nb::python_error();
  return nb::steal(result);
}

}  // namespace

void bind_inner(nb::module_& module) {
  nb::class_<PreparedOperator>(module, "PreparedOperator",
                               "An operator with its plan looked up: for tensors like those it was made for.")
      .def("__call__", &call_prepared, "a"_a, "b"_a, "bias"_a.none() = nb::none());
  module.def("gradients", &gradients, "grad_output"_a, "input"_a, "weight"_a, "geometry"_a, "wanted"_a,
             "The gradients of input, weight and bias that the bits of `wanted` name, in this order, None for the "
             "others; None when something wants to see each operator by itself.");
  module.attr("grad_input_op") = gradient_function<Operator::grad_input, false>();
  module.attr("grad_weight_op") = gradient_function<Operator::grad_weight, false>();
  module.attr("grad_input_in_graph") = gradient_function<Operator::grad_input, true>();
  module.attr("grad_weight_in_graph") = gradient_function<Operator::grad_weight, true>();
}

}  // namespace convt::binding
