#include "launch/patch_copy.hpp"

#include <cuda.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "launch/cuda_check.hpp"

namespace convt {
namespace {

// The driver is found at run time: the module links to no library of it.
using Encode = decltype(&cuTensorMapEncodeTiled);
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
             "looking for tensor copies");
#else
  cuda_check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found),
             "looking for tensor copies");
#endif
  if (found != cudaDriverEntryPointSuccess) throw std::runtime_error("this driver has no tensor copies");
  return reinterpret_cast<Encode>(function);
}

}  // namespace

void describe_box(const PatchBox& box, Operand operand, PatchCopy& copy) {
  static const Encode encode = find_encode();
  cuuint64_t extents[kBoxAxes], strides[kBoxAxes - 1];
  cuuint32_t spans[kBoxAxes], steps[kBoxAxes];
  for (int at = 0; at < kBoxAxes; ++at) {
    extents[at] = cuuint64_t(box.extent[at]);
    if (at > 0) strides[at - 1] = cuuint64_t(box.stride[at]);
    spans[at] = cuuint32_t((box.count[at] - 1) * box.step[at] + 1);
    steps[at] = cuuint32_t(box.step[at]);
  }
  constexpr CUtensorMapDataType types[kOperands] = {CU_TENSOR_MAP_DATA_TYPE_FLOAT32, CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                                                    CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_DATA_TYPE_FLOAT16};
  CUtensorMap map;
  static_assert(sizeof(map) == sizeof(copy.bytes));
  const CUresult result = encode(&map, types[int(operand)], kBoxAxes, const_cast<char*>(box.base), extents, strides,
                                 spans, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 !box.lines                ? CU_TENSOR_MAP_SWIZZLE_NONE
                                 : box.line_bytes() == 128 ? CU_TENSOR_MAP_SWIZZLE_128B
                                                           : CU_TENSOR_MAP_SWIZZLE_64B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error("describing a tensor copy: the driver's error " + std::to_string(int(result)));
  }
  std::memcpy(copy.bytes, &map, sizeof(map));
}

}  // namespace convt
