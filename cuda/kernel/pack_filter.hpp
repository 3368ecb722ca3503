#pragma once

#include "arch/lanes.hpp"
#include "arch/tf32.hpp"
#include "collective/gemm_params.hpp"

namespace convt {

// What packing is told beside the tables.
struct PackParams {
  const void* filter;             // any strides
  char* packed;                   // GemmParams::filter
  char* tables;                   // where the tables go: GemmParams::tables
  std::uint32_t* arrived;         // counters to clear, or null
  std::int64_t strides[2 + kAxes];   // input channel, output channel, D, H, W of the GEMM
  std::int64_t group_stride;      // between conv groups
  std::int64_t units;             // 16-byte units: of one copy, and a header per slab
  Axis axes[kAxes];
  std::int64_t origin[kAxes];     // o + origin = stride * q + phase
  TableLayout table;
  std::int32_t counters;
  std::int32_t in_channels, out_channels;   // per conv group, of the GEMM
  std::int32_t shift_sign;        // -1: shifts are negated
  std::int32_t block_channels, channel_blocks, phase_blocks, chunks, steps;
  std::int32_t rows, planes;      // of the tile configuration
  Operand operand;
};

// Sorts the filter into the order of its use, rounded or split as the operand wants it. Missing taps, channels and rows are 0.
struct PackFilter {
  static constexpr int kThreads = 256;

  // Writes unit `index` of [conv group][channel block][phase block][shift group][chunk][shift]{[plane][row], header}: the unit
  // in every copy.
  CONVT_HOST_DEVICE static void unit(const PackParams& params, const char* tables, std::int64_t index) {
    const std::int32_t per_copy = params.planes * params.rows, copies = filter_copies(params.operand);
    const std::int64_t slab = index / (per_copy + 1);
    const std::int32_t within = std::int32_t(index - slab * (per_copy + 1));
    auto* const packed = reinterpret_cast<Vector16*>(params.packed) + slab * (per_copy * copies + 1);
    const std::int32_t plane = within / params.rows, row = within - plane * params.rows;

    const std::int32_t steps = params.steps * params.chunks;
    const std::int64_t outer = slab / steps;
    std::int32_t step = std::int32_t(slab - outer * steps);
    const std::int32_t channel_block = std::int32_t(outer % params.channel_blocks);
    const std::int32_t conv_group = std::int32_t(outer / params.channel_blocks);

    const auto* blocks = reinterpret_cast<const PhaseBlock*>(tables);
    std::int32_t low = last_not_after(params.phase_blocks,
                                      [&](std::int32_t at) { return blocks[at].first_step * params.chunks <= step; });
    const PhaseBlock& block = blocks[low];
    step -= block.first_step * params.chunks;
    const auto* groups = reinterpret_cast<const ShiftGroup*>(tables + params.table.groups) + block.first_group;
    low = last_not_after(block.groups, [&](std::int32_t at) { return groups[at].first_step * params.chunks <= step; });
    const ShiftGroup& group = groups[low];
    step -= group.first_step * params.chunks;
    const std::int32_t chunk = step / group.shifts;
    const auto* const shifts = reinterpret_cast<const ShiftRecord*>(tables + params.table.shifts);
    const std::int32_t at_shift = step - chunk * group.shifts;
    const ShiftRecord& shift = shifts[group.first_shift + at_shift];
    if (within == per_copy) {
      // What comes next: another shift, the first again in the next chunk, or the next group's first.
      std::int32_t next = group.first_shift + at_shift + 1;
      if (at_shift + 1 == group.shifts) {
        next = chunk + 1 < params.chunks || low + 1 == block.groups ? group.first_shift : groups[low + 1].first_shift;
      }
      packed[per_copy * copies] = {{std::uint32_t(shifts[next].pixel_offset), shifts[next].row_mask, 0, 0}};
      return;
    }

    const std::int32_t slot = row / params.block_channels;
    const std::int32_t channel = channel_block * params.block_channels + row - slot * params.block_channels;
    bool there = slot < block.slots && channel < params.out_channels;
    std::int64_t offset = 0;
    if (there) {
      // One of the two is 0: phases are the output's, or the input's.
      std::int32_t phase =
          reinterpret_cast<const std::int32_t*>(tables + params.table.phases)[block.first_phase + slot] + shift.phase;
      for (int axis = kAxes - 1; axis >= 0; --axis) {
        const Axis& along = params.axes[axis];
        const std::int32_t stride = std::int32_t(along.stride), own = phase % stride;
        phase /= stride;
        // dilation * tap - padding + origin = stride * shift + phase
        const std::int64_t reach =
            along.stride * params.shift_sign * shift.shift[axis] + own + along.padding - params.origin[axis];
        const std::int64_t tap = reach / along.dilation;
        there = there && reach >= 0 && tap * along.dilation == reach && tap < along.filter;
        offset += tap * params.strides[2 + axis];
      }
    }
    const int vector = operand_vector(params.operand), bytes = operand_bytes(params.operand);
    const std::int32_t first = (chunk * params.planes + plane) * vector;
    const char* source =
        static_cast<const char*>(params.filter) +
        (offset + channel * params.strides[1] + conv_group * params.group_stride + first * params.strides[0]) * bytes;

    Vector16 high{}, low_half{};
    for (int element = 0; element < vector; ++element) {
      if (!there || first + element >= params.in_channels) break;
      const char* at = source + element * params.strides[0] * bytes;
      if (bytes == 4) {
        const std::uint32_t bits = *reinterpret_cast<const std::uint32_t*>(at);
        if (params.operand == Operand::tf32) {
          high.word[element] = round_to_tf32(bits);
        } else {
          const Tf32Pair pair = split_to_tf32(bits);
          high.word[element] = pair.high;
          low_half.word[element] = round_to_tf32(pair.low);
        }
      } else {
        const std::uint32_t bits = *reinterpret_cast<const std::uint16_t*>(at);
        high.word[element / 2] |= bits << (element % 2 * 16);
      }
    }
    packed[within] = high;
    if (copies == 2) packed[per_copy + within] = low_half;
  }

 private:
  template <class Predicate>
  CONVT_HOST_DEVICE static std::int32_t last_not_after(std::int32_t count, Predicate not_after) {
    std::int32_t low = 0, high = count;
    while (high - low > 1) {
      const std::int32_t middle = (low + high) / 2;
      (not_after(middle) ? low : high) = middle;
    }
    return low;
  }
};

}  // namespace convt
