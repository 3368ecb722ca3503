#include "binding/plans.hpp"

#include "host/isa.hpp"
#include "host/parallel.hpp"

namespace nb = nanobind;

namespace convt::binding {
namespace {

constexpr std::size_t kCapacity = 1024;

// The tensor that an operator writes, for planning on the CPU: sizes, strides and no data.
TorchTensor result_of(const PreparedOperator& prepared, const TorchTensor& like) {
  TorchTensor result = like;
  result.data = nullptr;
  result.rank = int(nb::len(prepared.size));
  for (int axis = 0; axis < result.rank; ++axis) result.sizes[axis] = nb::cast<std::int64_t>(prepared.size[axis]);
  std::int64_t dense = 1;
  for (int axis = result.rank; axis-- > 0; dense *= result.sizes[axis]) result.strides[axis] = dense;
  if (!prepared.strides.is_none()) {
    for (int axis = 0; axis < result.rank; ++axis) {
      result.strides[axis] = nb::cast<std::int64_t>(prepared.strides[axis]);
    }
  }
  return result;
}

}  // namespace

Plans& plans() {
  static auto* const cache = new Plans(kCapacity);
  return *cache;
}

Integers list_of(const Numbers& numbers, int which) {
  return Integers(numbers.lists[which], numbers.lists[which] + numbers.rank);
}

nb::tuple geometry_of(const Numbers& numbers) {
  const auto tuple = [&](int which) {
    nb::list made;
    for (const std::int64_t value : list_of(numbers, which)) made.append(value);
    return nb::tuple(made);
  };
  return nb::make_tuple(tuple(kStrideList), tuple(kPaddingList), tuple(kOutputPaddingList), numbers.groups,
                        tuple(kDilationList));
}

Key key_of(const Asked& asked) {
  const TorchTensor& head = *asked.tensors[0];
  const int rank = asked.numbers.rank;
  Key key;
  key.add(std::int64_t(asked.question) | rank << 4 | (asked.cast_to + 1) << 8 | int(asked.bias != nullptr) << 12 |
          int(head.on_cuda()) << 13 | std::int64_t(asked.flags) << 16);
  key.add(plans().settings());
  if (head.on_cuda()) {
    const bool is_float32 = asked.cast_to < 0 ? head.dtype == DType::float32 : DType(asked.cast_to) == DType::float32;
    key.add(head.device_index);
    key.add(is_float32 && torch_allows_tf32());
  } else {
    key.add(host::num_threads());
    key.add(std::int64_t(reinterpret_cast<std::uintptr_t>(&host::kernels())));
  }
  key.add(asked.numbers.groups);
  for (const auto& list : asked.numbers.lists) key.add(list, rank);
  for (const TorchTensor* tensor : asked.tensors) {
    if (!tensor) continue;
    key.add(int(tensor->dtype) | tensor->rank << 4);
    key.add(tensor->sizes, tensor->rank);
    key.add(tensor->strides, tensor->rank);
  }
  if (asked.bias) {
    key.add(std::int64_t(asked.bias->dtype));
    key.add(asked.bias->strides[0]);
  }
  return key;
}

nb::object prepare(Operator op, const nb::tuple& described, const Numbers& numbers,
                   const TorchTensor* const (&places)[3]) {
  PreparedOperator made;
  made.op = op;
  made.native = nb::cast<bool>(described[0]);
  if (!made.native) {
    made.closure = described[4];
    return nb::cast(std::move(made));
  }
  made.size = described[1];
  made.strides = described[2];
  if (!described[3].is_none()) {
    made.cuda = described[3];
    OperatorPlan* launchable = nullptr;
    if (nb::try_cast(made.cuda, launchable)) made.launchable = launchable;
    const auto bytes = nb::cast<std::int64_t>(made.cuda.attr("workspace_bytes"));
    if (bytes > 0) made.workspace = nb::make_tuple(bytes);
    return nb::cast(std::move(made));
  }
  const TorchTensor& like = *(places[2] ? places[2] : places[0]);
  const TorchTensor result = result_of(made, like);
  const TorchTensor& input = places[0] ? *places[0] : result;
  const TorchTensor& weight = places[1] ? *places[1] : result;
  made.problem = problem_of(input.sizes, weight, list_of(numbers, kStrideList), list_of(numbers, kPaddingList),
                            list_of(numbers, kOutputPaddingList), numbers.groups, list_of(numbers, kDilationList));
  const TorchTensor& output = places[2] ? *places[2] : result;
  require_sizes(output, "output", made.problem, made.problem.out_channels, &Axis::output);
  if (op == Operator::forward) {
    made.forward = std::make_unique<host::PreparedForward>(made.problem, like.dtype, view_of(input), view_of(weight),
                                                           view_of(result));
  }
  return nb::cast(std::move(made));
}

}  // namespace convt::binding
