#include "binding/torch_tensor.hpp"

#include <string_view>

namespace nb = nanobind;

namespace convt::binding {
namespace {

// DLPack's C ABI, version 1 (https://dmlc.github.io/dlpack/latest/c_api.html): only what is read here.
struct DLTensor {
  void* data;
  std::int32_t device_type;
  std::int32_t device_id;
  std::int32_t rank;
  std::uint8_t type_code;
  std::uint8_t type_bits;
  std::uint16_t type_lanes;
  std::int64_t* sizes;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

struct ExchangeTable {
  std::uint32_t major;
  std::uint32_t minor;
  ExchangeTable* previous;
  void* allocate;
  void* managed_from_object;
  void* object_from_managed;
  int (*tensor_from_object)(void* object, DLTensor* to);   // borrowed: valid while the object is
  void* current_stream;
};

constexpr std::int32_t kCpu = 1, kCuda = 2;
constexpr std::uint8_t kFloat = 2, kBFloat = 4;

const ExchangeTable* exchange_table() {
  static const ExchangeTable* const table = []() -> const ExchangeTable* {
    try {
      nb::object capsule = nb::module_::import_("torch").attr("Tensor").attr("__dlpack_c_exchange_api__");
      auto* found = static_cast<ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
      if (!found) throw nb::python_error();
      while (found && found->major != 1) found = found->previous;
      return found && found->tensor_from_object ? found : nullptr;
    } catch (nb::python_error&) {
      return nullptr;
    }
  }();
  return table;
}

bool read_through_table(PyObject* tensor, const ExchangeTable& table, TorchTensor& to) {
  DLTensor from;
  if (table.tensor_from_object(tensor, &from) != 0) {
    PyErr_Clear();
    return false;
  }
  if (from.rank > kMaxRank || from.type_lanes != 1) return false;
  to.data = static_cast<char*>(from.data) + from.byte_offset;
  using Place = TorchTensor::Place;
  to.place(from.device_type == kCpu    ? Place::cpu
           : from.device_type == kCuda ? Place::cuda
                                       : Place::elsewhere,
           from.device_id);
  to.rank = from.rank;
  for (int axis = 0; axis < from.rank; ++axis) {
    to.sizes[axis] = from.sizes[axis];
    to.strides[axis] = from.strides[axis];
  }
  to.supported_dtype = true;
  if (from.type_code == kFloat && from.type_bits == 32) {
    to.dtype = host::DType::float32;
  } else if (from.type_code == kFloat && from.type_bits == 64) {
    to.dtype = host::DType::float64;
  } else if (from.type_code == kFloat && from.type_bits == 16) {
    to.dtype = host::DType::float16;
  } else if (from.type_code == kBFloat && from.type_bits == 16) {
    to.dtype = host::DType::bfloat16;
  } else {
    to.supported_dtype = false;
  }
  return true;
}

bool read_through_attributes(nb::handle tensor, TorchTensor& to) {
  nb::tuple sizes = nb::tuple(tensor.attr("shape"));
  nb::tuple strides = nb::tuple(tensor.attr("stride")());
  if (sizes.size() > kMaxRank) return false;
  to.rank = int(sizes.size());
  for (int axis = 0; axis < to.rank; ++axis) {
    to.sizes[axis] = nb::cast<std::int64_t>(sizes[axis]);
    to.strides[axis] = nb::cast<std::int64_t>(strides[axis]);
  }
  to.data = reinterpret_cast<void*>(nb::cast<std::uintptr_t>(tensor.attr("data_ptr")()));
  using Place = TorchTensor::Place;
  const nb::object device = tensor.attr("device");
  const nb::object type_of_device = device.attr("type");
  const nb::str type{nb::handle(type_of_device)};
  const std::string_view name_of_type = type.c_str();
  to.place(name_of_type == "cpu"    ? Place::cpu
           : name_of_type == "cuda" ? Place::cuda
                                    : Place::elsewhere,
           device.attr("index").is_none() ? 0 : nb::cast<int>(device.attr("index")));
  const nb::object dtype_object = tensor.attr("dtype");
  const nb::str name{nb::handle(dtype_object)};   // of a handle: str() converts; of an object it would only cast
  const std::string_view dtype = name.c_str();
  to.supported_dtype = true;
  if (dtype == "torch.float32") {
    to.dtype = host::DType::float32;
  } else if (dtype == "torch.float64") {
    to.dtype = host::DType::float64;
  } else if (dtype == "torch.float16") {
    to.dtype = host::DType::float16;
  } else if (dtype == "torch.bfloat16") {
    to.dtype = host::DType::bfloat16;
  } else {
    to.supported_dtype = false;
  }
  return true;
}

}  // namespace

bool read_tensor(PyObject* tensor, TorchTensor& to) {
  const ExchangeTable* const table = exchange_table();
  if (table) return read_through_table(tensor, *table, to);
  try {
    return read_through_attributes(tensor, to);
  } catch (nb::python_error&) {   // no tensor, or one without strides
    return false;
  }
}

host::TensorView view_of(const TorchTensor& tensor) {
  host::TensorView view;
  view.data = tensor.data;
  for (int axis = 0; axis < tensor.rank; ++axis) {
    const int to = axis < 2 ? axis : axis + kMaxRank - tensor.rank;
    view.sizes[to] = tensor.sizes[axis];
    view.strides[to] = tensor.strides[axis];
  }
  return view;
}

}  // namespace convt::binding
