#include "binding/epilogue.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <functional>
#include <string>

#include "binding/problem.hpp"

namespace nb = nanobind;

namespace convt::binding {
namespace {

// How a call's operand becomes a tensor of the program; `fail` throws and says which step it is.
using Fail = std::function<void(const std::string&)>;
using ReadOperand = std::function<EpilogueTensor(nb::handle, const Fail& fail)>;

Pointwise operation_of(const std::string& name, const Fail& fail) {
  std::string legal;
  for (int at = 0; at < kPointwise; ++at) {
    if (name == kPointwiseNames[at]) return Pointwise(at);
    legal += (at == 0 ? "" : ", ") + std::string(kPointwiseNames[at]);
  }
  fail("unknown operation; legal are " + legal);
  return {};
}

Program program_with(nb::handle steps, const ReadOperand& read_operand) {
  Program program;
  if (steps.is_none()) return program;
  int tensors = 0;
  for (nb::handle entry : nb::cast<nb::sequence>(steps)) {
    const std::string place = "epilogue[" + std::to_string(program.count) + "]";
    if (program.count == kEpilogueSteps) {
      throw nb::value_error((place + ": at most " + std::to_string(kEpilogueSteps) + " steps are legal").c_str());
    }
    nb::tuple fields;
    if (!nb::try_cast(entry, fields) || fields.size() != 4) {
      throw nb::value_error((place + ": not a tuple (name, a, b, operand)").c_str());
    }
    std::string name;
    double a, b;
    if (!nb::try_cast(fields[0], name) || !nb::try_cast(fields[1], a) || !nb::try_cast(fields[2], b)) {
      throw nb::value_error((place + ": name must be a string, a and b numbers").c_str());
    }
    const Fail fail = [&](const std::string& message) {
      throw nb::value_error((place + " (" + name + "): " + message).c_str());
    };
    EpilogueStep<double>& step = program.steps[program.count++];
    step = {operation_of(name, fail), -1, a, b};
    if (step.operation == Pointwise::clamp && (std::isnan(a) || std::isnan(b))) {
      fail("a bound is NaN; legal are numbers, -inf and inf among them");
    }
    if (fields[3].is_none()) continue;
    if (!is_binary(step.operation)) fail("has an operand; only add, sub, mul and div may have one");
    if (tensors == kEpilogueTensors) {
      fail("is operand number " + std::to_string(tensors + 1) + "; at most " + std::to_string(kEpilogueTensors) +
           " steps may have one");
    }
    step.tensor = tensors;
    program.tensors[tensors++] = read_operand(fields[3], fail);
  }
  return program;
}

std::string text_of(const std::int64_t* sizes, int rank) {
  std::string text = "(";
  for (int axis = 0; axis < rank; ++axis) text += (axis ? ", " : "") + std::to_string(sizes[axis]);
  return text + (rank == 1 ? ",)" : ")");
}

void require_dtype(DType dtype, DType output, const Fail& fail) {
  if (dtype != output && dtype != DType::float32) {
    fail("operand has dtype " + std::string(name_of(dtype)) + "; legal are the output's, " + name_of(output) +
         ", and float32");
  }
}

}  // namespace

Program program_of(nb::handle steps, const TorchTensor& output) {
  return program_with(steps, [&](nb::handle operand, const Fail& fail) {
    const TorchTensor tensor = host_tensor(operand, "epilogue's operand");
    require_dtype(tensor.dtype, output.dtype, fail);
    EpilogueTensor made{tensor.data, {}, tensor.dtype};
    const std::int64_t channels = output.sizes[1];
    if (tensor.rank == 1 && tensor.sizes[0] == channels) {
      made.strides[1] = tensor.strides[0];
      return made;
    }
    if (tensor.rank != output.rank || !std::equal(tensor.sizes, tensor.sizes + tensor.rank, output.sizes)) {
      fail("operand has sizes " + text_of(tensor.sizes, tensor.rank) + "; legal are " + text_of(&channels, 1) +
           ", one value per channel, and the output's, " + text_of(output.sizes, output.rank));
    }
    const host::TensorView view = view_of(tensor);
    std::copy(std::begin(view.strides), std::end(view.strides), made.strides);
    return made;
  });
}

Program program_of_pointers(nb::handle steps, DType output) {
  return program_with(steps, [&](nb::handle operand, const Fail& fail) {
    nb::tuple fields;
    std::uintptr_t data;
    std::string dtype;
    Integers strides;
    if (!nb::try_cast(operand, fields) || fields.size() != 3 || !nb::try_cast(fields[0], data) ||
        !nb::try_cast(fields[1], dtype) || !nb::try_cast(fields[2], strides) || strides.size() != 2 + kAxes) {
      fail("operand must be (data_ptr, dtype, five strides)");
    }
    EpilogueTensor made{reinterpret_cast<const void*>(data), {}, dtype_of(dtype)};
    require_dtype(made.dtype, output, fail);
    std::copy(strides.begin(), strides.end(), made.strides);
    return made;
  });
}

}  // namespace convt::binding
