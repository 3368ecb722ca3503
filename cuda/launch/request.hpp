#pragma once

#include <array>
#include <cstdint>

#include "geometry/dtype.hpp"
#include "geometry/epilogue.hpp"
#include "geometry/operator.hpp"
#include "geometry/problem.hpp"

// What every CUDA kernel family is asked. Plain C++: planning and explaining need no GPU and no CUDA compiler.
namespace convt {

// How float32 is multiplied; the other types have one way.
enum class Precision { ieee, tf32 };

// Strides in elements of (batch, channel, D, H, W); of the filter: (in_channel, out_channel of its group, D, H, W).
using Strides = std::array<std::int64_t, 2 + kAxes>;

struct Request {
  Operator op = Operator::forward;
  Problem problem;
  DType dtype = DType::float32;
  Precision precision = Precision::ieee;
  Strides input{}, filter{}, output{};   // of these tensors, or of the gradients in their places
  std::int64_t bias_stride = 0;   // elements
  bool has_bias = false;          // forward only
};

// The GPU that a plan is made for.
struct DeviceTraits {
  int capability = 90;                    // 10 * major + minor
  int multiprocessors = 132;
  std::int64_t shared_per_block = 227 * 1024;          // bytes a block may ask for
  std::int64_t shared_per_multiprocessor = 228 * 1024;
  std::int64_t registers_per_multiprocessor = 65536;
  std::int64_t l2_bytes = 50 << 20;
  int outputs_together = 0;  // neighbours along an axis, as phases of forward or grad_input: 0 as many as pay
  int tensor_copies = 1;  // 0 never, 1 where they pay, wherever they can be: 2 of turned tensors, 3 of rows
  double clock_ghz = 1.755;  // under load; of a GPU that is there, its boost
  double product_clock_ghz = 1.755;  // while tensor cores multiply
  double memory_gbs = 4300;  // copy, bytes read plus written
};

// Device pointers of one call, by the places of the tensors; bias is null without one. `stream` is a cudaStream_t.
struct Pointers {
  void* input;
  void* filter;
  const void* bias;
  void* output;
  void* workspace;  // plan's workspace_bytes, 256-byte aligned
  void* stream;
  const Program* program = nullptr;  // what follows a forward, or null
};

}  // namespace convt
