#include "binding/problem.hpp"

namespace nb = nanobind;

namespace convt::binding {
namespace {

constexpr double kMaxPhases = 1 << 20;

[[noreturn]] void fail(const std::string& message) { throw nb::value_error(message.c_str()); }

}  // namespace

TorchTensor host_tensor(nb::handle tensor, const char* name) {
  TorchTensor read;
  if (!read_tensor(tensor.ptr(), read)) fail(std::string(name) + " is not a strided tensor of at most 5 axes");
  if (!read.on_cpu()) fail(std::string(name) + " is not on the CPU");
  if (!read.supported_dtype) fail(std::string(name) + " must be float32, float64, bfloat16 or float16");
  return read;
}

TorchTensor host_tensor(nb::handle tensor, const char* name, const TorchTensor& like, int rank) {
  const TorchTensor read = host_tensor(tensor, name);
  if (read.dtype != like.dtype) fail(std::string(name) + " has another dtype than the first argument");
  if (read.rank != (rank ? rank : like.rank)) fail(std::string(name) + " has " + std::to_string(read.rank) + " axes");
  return read;
}

DType dtype_of(const std::string& name) {
  for (int at = 0; at < kDTypes; ++at) {
    if (name == name_of(DType(at))) return DType(at);
  }
  throw nb::value_error(("dtype: " + name + "; legal are float32, float64, float16 and bfloat16").c_str());
}

Operator operator_of(const std::string& name) {
  std::string legal;
  for (int at = 0; at < kOperators; ++at) {
    if (name == name_of(Operator(at))) return Operator(at);
    legal += (at == 0 ? "" : ", ") + std::string(name_of(Operator(at)));
  }
  throw nanobind::value_error(("operator: " + name + "; legal are " + legal).c_str());
}

Problem problem_of(const std::int64_t* input_sizes, const TorchTensor& weight, const Integers& stride,
                   const Integers& padding, const Integers& output_padding, std::int64_t groups,
                   const Integers& dilation) {
  const int spatial = weight.rank - 2;
  if (spatial < 1 || spatial > kAxes) fail("tensors must be batched, with 1 to 3 spatial axes");
  for (const Integers* list : {&stride, &padding, &output_padding, &dilation}) {
    if (int(list->size()) != spatial)
      fail("stride, padding, output_padding and dilation need one value per spatial axis");
  }
  Problem problem;
  problem.batch = input_sizes[0];
  problem.in_channels = input_sizes[1];
  problem.groups = groups;
  problem.out_channels = weight.sizes[1] * groups;
  if (groups < 1 || problem.in_channels % groups || weight.sizes[0] != problem.in_channels) {
    fail("weight must be (in_channels, out_channels // groups, *filter) with in_channels a multiple of groups");
  }
  for (int axis = 0; axis < spatial; ++axis) {
    Axis& to = problem.axes[axis + kAxes - spatial];
    to = {input_sizes[axis + 2], weight.sizes[axis + 2], stride[axis],
          padding[axis],         output_padding[axis],   dilation[axis]};
    if (to.input < 1 || to.filter < 1 || to.stride < 1 || to.dilation < 1 || to.padding < 0 || to.output_padding < 0 ||
        to.output() < 1) {
      fail("no legal transposed convolution on spatial axis " + std::to_string(axis));
    }
  }
  // Tables have an entry per phase. The bound keeps them small; no other size here depends on a stride alone.
  double phases = 1;
  for (const Axis& axis : problem.axes) phases *= double(axis.stride);
  if (phases > kMaxPhases) fail("the strides make more than 2**20 phases; native code takes no more");
  return problem;
}

void require_sizes(const TorchTensor& tensor, const char* name, const Problem& problem, std::int64_t channels,
                   std::int64_t (Axis::*extent)() const) {
  bool right = tensor.sizes[0] == problem.batch && tensor.sizes[1] == channels;
  for (int axis = 2; axis < tensor.rank; ++axis) {
    right = right && tensor.sizes[axis] == (problem.axes[axis - 2 + kMaxRank - tensor.rank].*extent)();
  }
  if (!right) fail(std::string(name) + " has the wrong sizes");
}

host::TensorView channel_view(const TorchTensor& vector) {
  host::TensorView view;
  view.data = vector.data;
  view.sizes[1] = vector.sizes[0];
  view.strides[1] = vector.strides[0];
  return view;
}

}  // namespace convt::binding
