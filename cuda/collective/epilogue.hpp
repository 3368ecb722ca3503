#pragma once

#include "arch/half.hpp"
#include "arch/lanes.hpp"
#include "arch/pointwise.hpp"
#include "collective/mma.hpp"

namespace convt {

// Accumulators to output: through shared memory, so that every row of the output leaves in order, in 16-byte pieces. Phases
// that no tap reaches are written here as well: bias, or zero.
template <TileConfig kConfig, Operand kOperand>
struct Epilogue {
  using Products = Mma<kConfig, kOperand>;
  using Stored = std::conditional_t<is_float32(kOperand), float,
                                    std::conditional_t<kOperand == Operand::bfloat16, BFloat16, Float16>>;
  static constexpr int kBytes = operand_bytes(kOperand);
  static constexpr int kVector = operand_vector(kOperand);   // elements of a piece
  static constexpr int kPitch = kConfig.staging_pitch();
  static constexpr int kBias = kConfig.rows * kPitch;        // float index of the bias, behind the staging
  static constexpr int kPhases = kBias + kConfig.rows;       // float index of the first row of every phase, or -1

  CONVT_HOST_DEVICE static constexpr std::int32_t column(std::int32_t position) { return position + (position >> 5); }

  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void stage(Warp& warp, const typename Products::template State<kLanes>& state,
                                      const GemmParams& params, const Tile& tile, const PhaseBlock& block) {
    const std::int32_t row = warp.index() % kConfig.warps_m * kConfig.warp_rows();
    const std::int32_t position = warp.index() / kConfig.warps_m * kConfig.warp_pixels();
    warp.lanes([&](int lane) {
#pragma unroll
      for (int i = 0; i < Products::kRowTiles; ++i) {
#pragma unroll
        for (int j = 0; j < Products::kPixelTiles; ++j) {
          const std::int32_t at = row + i * kMmaRows + lane / 4, from = position + j * kMmaPixels + lane % 4 * 2;
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            const std::int32_t cell = (at + k / 2 * 8) * kPitch + column(from) + k % 2;
            warp.template store<float>(cell * 4, state.sum[i][j][k][lane]);
          }
        }
      }
      for (std::int32_t channel = warp.thread(lane); channel < params.block_channels; channel += kConfig.threads()) {
        const std::int32_t of_group = tile.channel_block * params.block_channels + channel;
        float bias = 0;
        if (params.bias != nullptr && of_group < params.out_channels) {
          const std::int64_t at = (std::int64_t(tile.conv_group) * params.out_channels + of_group) * params.bias_stride;
          bias = to_float(warp, static_cast<const char*>(params.bias) + at * kBytes);
        }
        warp.template store<float>((kBias + channel) * 4, bias);
      }
      const std::int32_t phases = block.outer_count * block.w_count;
      for (std::int32_t phase = warp.thread(lane); phase < phases; phase += kConfig.threads()) {
        const std::int32_t slot =
            warp.template global<std::int16_t>(params.tables + params.table.slots + (block.first_slot + phase) * 2);
        warp.template store<std::int32_t>((kPhases + phase) * 4, slot < 0 ? -1 : slot * params.block_channels * kPitch);
      }
    });
  }

  // Without phases a row of accumulators is a piece of an output row already, 32 bytes wide: straight from registers.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void write_direct(Warp& warp, const typename Products::template State<kLanes>& state,
                                             const GemmParams& params, const Tile& tile) {
    const TileAxis* const axes = params.axes;
    const std::int32_t first_of_block = tile.channel_block * params.block_channels;
    const std::int32_t channels = min_of(params.block_channels, params.out_channels - first_of_block);
    const std::int64_t first_channel = std::int64_t(tile.conv_group) * params.out_channels + first_of_block;
    std::int64_t origin = tile.q[0] * params.output_strides[0] + first_channel * params.output_strides[1];
    for (int axis = 1; axis < kTileAxes; ++axis) {
      origin += (tile.q[axis] - axes[axis].origin) * params.output_strides[1 + axis];
    }
    char* const base = static_cast<char*>(params.output) + origin * kBytes;
    const std::int32_t first_row = warp.index() % kConfig.warps_m * kConfig.warp_rows();
    const std::int32_t first_position = warp.index() / kConfig.warps_m * kConfig.warp_pixels();
    warp.lanes([&](int lane) {
      std::int32_t offset[Products::kPixelTiles], there[Products::kPixelTiles];  // of a pair: bytes, and how many exist
#pragma unroll
      for (int j = 0; j < Products::kPixelTiles; ++j) {
        std::int32_t rest = first_position + j * kMmaPixels + lane % 4 * 2, at = 0;
        bool inside = true;
#pragma unroll
        for (int axis = kTileAxes - 1; axis >= 0; --axis) {
          const std::int32_t outer = axes[axis].by_tile.quotient(rest),
                             digit = axes[axis].by_tile.remainder(rest, outer);
          if (axis == kTileAxes - 1) {
            there[j] = tile.count[axis] - digit;
          } else {
            inside = inside && digit < tile.count[axis];
          }
          at += digit * std::int32_t(params.output_strides[axis == 0 ? 0 : 1 + axis]);
          rest = outer;
        }
        if (!inside || rest > 0) there[j] = 0;
        offset[j] = at * kBytes;
      }
#pragma unroll
      for (int i = 0; i < 2 * Products::kRowTiles; ++i) {
        const std::int32_t channel = first_row + i * 8 + lane / 4;
        if (channel >= channels) continue;
        char* const row = base + channel * params.output_strides[1] * kBytes;
        float bias = 0;
        if (params.bias != nullptr) {
          bias = to_float(
              warp, static_cast<const char*>(params.bias) + (first_channel + channel) * params.bias_stride * kBytes);
        }
#pragma unroll
        for (int j = 0; j < Products::kPixelTiles; ++j) {
          const float left = state.sum[i / 2][j][i % 2 * 2][lane] + bias;
          const float right = state.sum[i / 2][j][i % 2 * 2 + 1][lane] + bias;
          if (params.way_out == WayOut::pairs && there[j] > 1) {
            warp.store_global_pair(row + offset[j], pack_pair<kOperand>(left, right));
          } else {
            if (there[j] > 0) store_element(warp, row + offset[j], left);
            if (there[j] > 1) store_element(warp, row + offset[j] + kBytes, right);
          }
        }
      }
    });
  }

  template <class Warp>
  CONVT_HOST_DEVICE static void write(Warp& warp, const GemmParams& params, const Tile& tile, const PhaseBlock& block) {
    if (params.output_channels_inner) {
      write_items<true>(warp, params, tile, block);
    } else {
      write_items<false>(warp, params, tile, block);
    }
  }

  template <class Warp>
  CONVT_HOST_DEVICE static void store_element(Warp& warp, char* target, float value) {
    if constexpr (kBytes == 4) {
      warp.template store_global<float>(target, value);
    } else {
      warp.template store_global<std::uint16_t>(target, narrow<kOperand>(value));
    }
  }

  template <class Warp>
  CONVT_HOST_DEVICE static float to_float(Warp& warp, const char* source) {
    if constexpr (kBytes == 4) {
      return warp.template global<float>(source);
    } else {
      return widen<kOperand>(warp.template global<std::uint16_t>(source));
    }
  }

 private:
  // kVector output elements of one output row, or of one output pixel, repeated over channels.
  struct Item {
    std::int32_t source[kVector];  // float index into the staging
    std::uint32_t reached;  // bit j: a tap reaches element j; the others are bias alone
    std::uint32_t inside;  // bit j: element j exists
    std::int32_t bias;  // float index
    char* target;  // address of element 0
    std::int64_t w;  // output coordinate of element 0
    bool contiguous;  // elements lie side by side, so that a whole piece may leave as one
  };
  static constexpr std::uint32_t kWhole = (1u << kVector) - 1;

  // Positions of a tile along W, phases included: x = 0 is the first output pixel of the tile's row.
  struct Row {
    std::int64_t first;  // output coordinate of x = 0
    std::int32_t begin, end;  // x of pixels that exist, when the block has all W phases
    std::int32_t positions;
    bool contiguous;
  };

  template <bool kChannelsInner, class Warp>
  CONVT_HOST_DEVICE static void write_items(Warp& warp, const GemmParams& params, const Tile& tile,
                                            const PhaseBlock& block) {
    const TileAxis *const axes = params.axes, &along = axes[3];
    Row row;
    row.contiguous = block.w_count == along.stride;
    row.first = along.stride * tile.q[3] + block.w_begin - along.origin;
    row.positions = tile.count[3] * block.w_count;
    row.begin = row.first < 0 ? std::int32_t(-row.first) : 0;
    row.end = along.output - row.first < row.positions ? std::int32_t(along.output - row.first) : row.positions;

    const std::int64_t channel_stride = params.output_strides[1];
    const std::int32_t first_of_block = tile.channel_block * params.block_channels;
    const std::int32_t channels = min_of(params.block_channels, params.out_channels - first_of_block);
    const std::int32_t step = (kChannelsInner ? kVector : 1) << block.lanes_log2;
    const std::int64_t target_step = step * channel_stride * kBytes;
    const std::int64_t first_channel = std::int64_t(tile.conv_group) * params.out_channels + first_of_block;
    const std::int64_t origin = tile.q[0] * params.output_strides[0] + first_channel * channel_stride;
    // Whole tiles are counted, so that all divisors are the plan's; what the last tiles lack is skipped.
    const std::int32_t items =
        std::int32_t(block.by_piece.divisor) * axes[2].tile * axes[1].tile * axes[0].tile * block.outer_count
        << block.lanes_log2;

    warp.lanes([&](int lane) {
#pragma unroll 1
      for (std::int32_t index = warp.thread(lane); index < items; index += kConfig.threads()) {
        std::int32_t rest = index;
        const auto next = [&rest](const FastDivisor& by) {
          const std::int32_t quotient = by.quotient(rest), digit = by.remainder(rest, quotient);
          rest = quotient;
          return digit;
        };
        // Along channels two lanes fill a sector; along W neighbours do.
        std::int32_t channel = 0, lanes_log2 = block.lanes_log2;
        if constexpr (kChannelsInner) {
          channel = rest & 1;
          rest >>= 1;
          --lanes_log2;
        }
        const std::int32_t piece = next(block.by_piece);
        channel |= (rest & ((1 << lanes_log2) - 1)) << (kChannelsInner ? 1 : 0);
        if constexpr (kChannelsInner) channel *= kVector;
        rest >>= lanes_log2;
        const std::int32_t b = next(axes[2].by_tile), a = next(axes[1].by_tile), image = next(axes[0].by_tile);
        const std::int32_t outer = rest, phase = block.outer_begin + outer, phase_d = axes[2].by_stride.quotient(phase);
        const std::int64_t d = output_pixel(axes[1], tile.q[1] + a, phase_d);
        const std::int64_t h = output_pixel(axes[2], tile.q[2] + b, axes[2].by_stride.remainder(phase, phase_d));
        if (b >= tile.count[2] || a >= tile.count[1] || image >= tile.count[0] || channel >= channels || d < 0 ||
            d >= axes[1].output || h < 0 || h >= axes[2].output) {
          continue;
        }
        char* line =
            static_cast<char*>(params.output) + (origin + image * params.output_strides[0] + channel * channel_stride +
                                                 d * params.output_strides[2] + h * params.output_strides[3]) *
                                                    kBytes;
        std::int32_t pixel = ((image * axes[1].tile + a) * axes[2].tile + b) * axes[3].tile;
        if constexpr (kConfig.grouped()) pixel = axes[0].position(image) + axes[1].position(a) + axes[2].position(b);
        const std::int32_t phases = kPhases + outer * block.w_count;
        const auto item = kChannelsInner ? along_channels(warp, params, row, block, line, piece, pixel, phases, channel)
                                         : along_row(warp, params, row, block, line, piece, pixel, phases, channel);
        if (item.inside == 0) continue;
        char* target = item.target;
        OutputPlace place{{tile.q[0] + image, first_channel + channel, d, h, item.w}};
        if (!kChannelsInner && !item.contiguous) {
          for (std::int32_t done = 0; channel + done < channels; done += step, target += target_step) {
            store_scattered(warp, item, done, target, params, block, piece, place);
            place.at[1] += step;
          }
          continue;
        }
        std::int32_t source[kVector], bias = item.bias * 4;
#pragma unroll
        for (int j = 0; j < kVector; ++j) source[j] = item.source[j] * 4;
        const auto leave = [&](auto finish) {
#pragma unroll 1
          for (std::int32_t left = channels - channel; left > 0; left -= step) {
            std::uint32_t inside = item.inside;
            if (kChannelsInner && left < kVector) inside &= (1u << left) - 1;
            float value[kVector];
            sum_piece<kChannelsInner>(warp, source, bias, item.reached, inside, value);
            finish(value, inside);
            store_piece(warp, value, inside, item.contiguous, target);
#pragma unroll
            for (int j = 0; j < kVector; ++j) source[j] += step * kPitch * 4;
            bias += step * 4;
            target += target_step;
          }
        };
        if (params.program.count == 0) {
          leave([](float (&)[kVector], std::uint32_t) {});
        } else {
          leave([&](float (&value)[kVector], std::uint32_t inside) {
            apply_program<Stored>(params.program, value, inside, place, kChannelsInner ? 1 : 4, 1);
            place.at[1] += step;
          });
        }
      }
    });
  }

  CONVT_HOST_DEVICE static std::int64_t output_pixel(const TileAxis& axis, std::int64_t q, std::int32_t phase) {
    return axis.stride * q + phase - axis.origin;
  }

  CONVT_HOST_DEVICE static std::int32_t min_of(std::int32_t a, std::int32_t b) { return a < b ? a : b; }

  template <class Warp>
  CONVT_HOST_DEVICE static Item along_row(Warp& warp, const GemmParams& params, const Row& row, const PhaseBlock& block,
                                          char* line, std::int32_t piece, std::int32_t pixel, std::int32_t phases,
                                          std::int32_t channel) {
    Item item;
    item.reached = item.inside = 0;
    item.bias = kBias + channel;
    item.contiguous = row.contiguous && params.output_strides[4] == 1;
    // Pieces start where a store of 16 bytes may.
    const std::int32_t misaligned =
        item.contiguous
            ? std::int32_t((reinterpret_cast<std::uintptr_t>(line) / kBytes + std::uint64_t(row.first)) % kVector)
            : 0;
    const std::int32_t first = piece * kVector - misaligned;
    item.w = row.first + first;
    item.target = line + item.w * params.output_strides[4] * kBytes;
    const std::int32_t from = first < 0 ? 0 : first;
    std::int32_t q = block.by_w.quotient(from), phase = block.by_w.remainder(from, q);
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const std::int32_t x = first + j;
      item.source[j] = channel * kPitch;
      if (x < 0 || x >= row.positions) continue;
      if (row.contiguous ? x >= row.begin && x < row.end : exists(params, row, q, phase)) {
        item.inside |= 1u << j;
        const std::int32_t source = warp.template load<std::int32_t>((phases + phase) * 4);
        if (source >= 0) {
          item.reached |= 1u << j;
          item.source[j] = source + channel * kPitch + column(pixel + q);
        }
      }
      if (++phase == block.w_count) {
        phase = 0;
        ++q;
      }
    }
    return item;
  }

  template <class Warp>
  CONVT_HOST_DEVICE static Item along_channels(Warp& warp, const GemmParams& params, const Row& row,
                                               const PhaseBlock& block, char* line, std::int32_t x, std::int32_t pixel,
                                               std::int32_t phases, std::int32_t channel) {
    Item item;
    const std::int32_t q = block.by_w.quotient(x), phase = block.by_w.remainder(x, q);
    const bool there =
        x < row.positions && (row.contiguous ? x >= row.begin && x < row.end : exists(params, row, q, phase));
    const std::int32_t source = there ? warp.template load<std::int32_t>((phases + phase) * 4) : -1;
    item.inside = there ? kWhole : 0;
    item.reached = source >= 0 ? kWhole : 0;
    item.bias = kBias + channel;
    item.contiguous = params.output_vectors;
    item.w = row.contiguous ? row.first + x : row.first + std::int64_t(q) * params.axes[3].stride + phase;
    item.target = line + item.w * params.output_strides[4] * kBytes;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      item.source[j] = (source < 0 ? 0 : source) + (channel + j) * kPitch + column(pixel + q);
    }
    return item;
  }

  CONVT_HOST_DEVICE static bool exists(const GemmParams& params, const Row& row, std::int32_t q, std::int32_t phase) {
    const std::int64_t w = row.first + std::int64_t(q) * params.axes[3].stride + phase;
    return w >= 0 && w < params.axes[3].output;
  }

  // A piece from byte offsets into the staging. Along W elements that do not exist have a source all the same; channels that do
  // not exist may lie behind the staging.
  template <bool kChannelsInner, class Warp>
  CONVT_HOST_DEVICE static void sum_piece(Warp& warp, const std::int32_t (&source)[kVector], std::int32_t bias,
                                          std::uint32_t reached, std::uint32_t inside, float (&value)[kVector]) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      float sum = 0, added = 0;
      if (!kChannelsInner || (inside >> j & 1)) {
        sum = warp.template load<float>(source[j]);
        added = warp.template load<float>(bias + (kChannelsInner ? j * 4 : 0));
      }
      value[j] = (reached >> j & 1 ? sum : 0.f) + added;
    }
  }

  template <class Warp>
  CONVT_HOST_DEVICE static void store_piece(Warp& warp, const float (&value)[kVector], std::uint32_t inside,
                                            bool contiguous, char* target) {
    if (contiguous && inside == kWhole) {
      warp.store_global16(target, pack<kOperand>(value));
      return;
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      if (inside >> j & 1) store_element(warp, target + j * kBytes, value[j]);
    }
  }

  // The same where W phases are cut: neighbours in the tile are not neighbours in the output.
  template <class Warp>
  CONVT_HOST_DEVICE static void store_scattered(Warp& warp, const Item& item, std::int32_t done, char* target,
                                                const GemmParams& params, const PhaseBlock& block, std::int32_t piece,
                                                OutputPlace place) {
    const std::int64_t stride = params.output_strides[4] * kBytes;
    const float bias = warp.template load<float>((item.bias + done) * 4);
    const std::int64_t first = place.at[4];
#pragma unroll 1
    for (int j = 0; j < kVector; ++j) {
      if (!(item.inside >> j & 1)) continue;
      const std::int32_t q = block.by_w.quotient(piece * kVector + j);
      const std::int64_t at = j + std::int64_t(q) * (params.axes[3].stride - block.w_count);
      std::int32_t source = item.source[0];
#pragma unroll
      for (int i = 1; i < kVector; ++i) source = i == j ? item.source[i] : source;
      const float sum = item.reached >> j & 1 ? warp.template load<float>((source + done * kPitch) * 4) : 0.f;
      float value[1] = {sum + bias};
      if (params.program.count > 0) {
        place.at[4] = first + at;
        apply_program<Stored>(params.program, value, 1, place, 4, 0);
      }
      store_element(warp, target + at * stride, value[0]);
    }
  }
};

}  // namespace convt
