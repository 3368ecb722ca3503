#pragma once

#include <cstdint>

#include "geometry/epilogue.hpp"
#include "host/tensor.hpp"

// What the per-ISA code is told: plain values and pointers only, so that no inline function of another header is
// compiled with instructions that the machine may lack.
namespace convt::host {

// A block of images x channels x planes of a source tensor, zero-filled outside it:
//   element (channel, plane, image, d, h, w) holds source pixel  stride * (origin + low + (d, h, w)) + residue[plane].
// Forward reads one plane at stride 1; the gradients de-interleave grad_output into one plane per phase.
struct PatchArgs {
  TensorView source;
  std::int64_t planes;
  const std::int64_t (*residue)[3];
  std::int64_t stride[3];
  std::int64_t low[3];         // lowest grid offset that any tap reads
  std::int64_t extent[3];      // patch pixels per axis, halo included
  std::int64_t plane_pitch;    // elements from one plane to the next, a multiple of the vector
};

// The grid cut into boxes, and how positions of a box are walked. Positions are numbered in the patch's own order, so a
// tap is one constant offset. Runs may cross rows, slabs or images: the halo positions in between are computed and dropped.
struct GridArgs {
  std::int64_t images;         // extents of the grid
  std::int64_t extent[3];
  std::int64_t box_images;     // extents of one box
  std::int64_t box[3];
  std::int64_t boxes[4];       // boxes along images, D, H, W
  int run_axis;                // a run covers axes >= run_axis of (image, D, H, W): 3 one row ... 0 the whole box
};

struct CorrelationTap {
  std::int64_t patch_offset;   // plane and shift, in patch elements
  std::int64_t offset[3];      // source grid position minus destination grid position
  std::int64_t residue[3];     // plane residue
  std::int64_t filter_offset;  // in filter elements
};

// destination[m, phase, q] = bias[m] + sum over taps of the phase and channels k of filter[m, k, tap] * source[k, plane, q + offset]
struct CorrelationArgs {
  std::int64_t groups;
  std::int64_t source_channels;        // per group
  std::int64_t destination_channels;   // per group
  PatchArgs patch;
  GridArgs grid;
  TensorView destination;
  std::int64_t destination_stride[3];
  const std::int64_t* phase_begin;     // [product of destination_stride + 1], W phase fastest
  const CorrelationTap* taps;          // sorted by phase
  std::int64_t tap_count;
  const void* filter;
  std::int64_t filter_group_stride;
  std::int64_t filter_channel_stride;  // source channel
  std::int64_t filter_row_stride;      // destination channel
  void* packed_filter;                 // [group][panel][tap][source channel][panel row]
  const void* bias;                    // accumulator type, [channels] and a vector of zeros; or null
  const Program* program;              // what follows, or null
  std::int64_t panel_rows;             // destination channels in a register tile
  std::int64_t panels;                 // per group
  std::int64_t block_panels;           // panels between two stores
  std::int64_t block_rows;             // destination channels between two stores
  std::int64_t group_block;            // groups that share a patch load
  std::int64_t group_blocks;
  std::int64_t panel_splits;           // tasks that share a box, each with its own panels
  std::int64_t accumulator_pitch;      // elements per destination channel of a box
  bool streaming;                      // store past the caches
};

struct WeightGradientTap {
  std::int64_t input_offset;           // in patch elements
  std::int64_t filter_offset;          // in elements of a contiguous filter
};

// grad_filter[k, m, tap] = sum over q of input[k, q + offset] * grad_output[m, plane of tap, q]
struct WeightGradientArgs {
  std::int64_t groups;
  std::int64_t in_channels;            // per group
  std::int64_t out_channels;           // per group
  PatchArgs input;
  PatchArgs grad_output;               // no halo; walked at the input patch's pitches
  GridArgs grid;
  const std::int64_t* plane_begin;     // [planes + 1]
  const WeightGradientTap* taps;       // sorted by plane
  std::int64_t tap_count;
  std::int64_t in_block, in_blocks;    // channels per task
  std::int64_t out_block, out_blocks;
  std::int64_t group_block, group_blocks;
  std::int64_t slices;                 // boxes are dealt to slices, each with a sum of its own
  void* partial;                       // accumulator type, [slice][in_channels of all groups][out_channels][tap]
};

struct ChannelSumArgs {
  TensorView source;
  TensorView destination;              // [1, channels, 1, 1, 1]
};

struct ConvertArgs {                   // destination = sum over slices, converted
  const void* partial;
  std::int64_t slices;
  std::int64_t slice_pitch;
  TensorView destination;
};

// One entry per storage type; accumulators are float64 for float64 and float32 otherwise.
struct Kernels {
  int lanes[kDTypes];                  // accumulators per vector
  int panel_rows[kDTypes];
  bool (*pack_filter[kDTypes])(const CorrelationArgs&, std::int64_t group,
                               std::int64_t panel);   // false: a value is not finite
  void (*correlate[kDTypes])(const CorrelationArgs&, std::int64_t task, void* scratch);
  void (*correlate_exact[kDTypes])(const CorrelationArgs&, std::int64_t image, std::int64_t channel);
  void (*weight_gradient[kDTypes])(const WeightGradientArgs&, std::int64_t task, void* scratch);
  void (*weight_gradient_exact[kDTypes])(const WeightGradientArgs&, std::int64_t in_channel);
  void (*widen_bias[kDTypes])(const TensorView& bias, void* to);
  bool (*convert[kDTypes])(const ConvertArgs&, std::int64_t row);  // false: a value is NaN
  void (*channel_sum[kDTypes])(const ChannelSumArgs&, std::int64_t channel);
};

}  // namespace convt::host
