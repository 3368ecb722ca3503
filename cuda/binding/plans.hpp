#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <memory>

#include "binding/native_call.hpp"
#include "binding/plan_cache.hpp"

namespace convt::binding {

// How a call is answered once its problem is known. `recorded`: gradients are wanted. python: by the function that stands
// behind the entry; prepared: by an operator that has looked everything up; cast: as autocast says, and once more.
enum class Route : int { python, prepared, aten, aten_small, cast };

enum class Question : int { forward, grad_input, grad_weight, gradients };

// The numbers of a call: stride, padding, output_padding and dilation, three places each, and groups.
struct Numbers {
  int rank = 0;
  std::int64_t lists[4][3] = {{1, 1, 1}, {0, 0, 0}, {0, 0, 0}, {1, 1, 1}};
  std::int64_t groups = 1;
};
enum { kStrideList, kPaddingList, kOutputPaddingList, kDilationList };

struct Plan {
  Route plain = Route::python, recorded = Route::python;
  // The operator that answers, or those of the gradients of input and weight; null where nobody asks for one.
  std::array<nanobind::object, 2> owner;
  std::array<const PreparedOperator*, 2> operators{};
  nanobind::object joint;  // both gradients at once, where they share something
  bool weight_first = false;  // the weight's gradient before the input's
  bool bias_first = false;    // the bias' before both
  nanobind::object form;   // what a node remembers of a forward call
  nanobind::object bias_size, bias_axes;  // of grad_bias: by native code, or as PyTorch's sum
  nanobind::object bias_sum, bias_workspace;  // of native code on a GPU: a ChannelSum, and the size for new_empty
  std::array<nanobind::object, 8> small;  // slow_conv_transposeNd's arguments but the tensors
  std::size_t small_count = 0;            // trailing defaults are left out: parsing them costs more than the product
};

using Plans = PlanCache<Plan>;
Plans& plans();   // never destroyed: plans hold Python objects, and the interpreter may end first

struct Asked {
  Question question;
  int flags = 0;   // that change the answer
  const Numbers& numbers;
  const TorchTensor* tensors[3] = {};
  const TorchTensor* bias = nullptr;
  int cast_to = -1;   // a DType, under autocast
};
Key key_of(const Asked& asked);

// A problem's numbers as vectors of its rank.
Integers list_of(const Numbers& numbers, int which);
nanobind::tuple geometry_of(const Numbers& numbers);

// The operator that (native, size, strides, cuda plan, closure) of eager.py describes; `places` are the forward's tensors,
// of which the result is made from size and strides.
nanobind::object prepare(Operator op, const nanobind::tuple& described, const Numbers& numbers,
                         const TorchTensor* const (&places)[3]);

void bind_inner(nanobind::module_& module);

}  // namespace convt::binding
