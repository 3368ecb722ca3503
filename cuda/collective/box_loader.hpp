#pragma once

#include "collective/channel_batch.hpp"
#include "collective/patch_table.hpp"
#include "collective/weight_params.hpp"

namespace convt {

// Fetches what a box of positions needs: the input's tile [plane][pixel][16 bytes of channels], positions that do not exist zero,
// and the patch of grad_output. A batch is an octet of channels of one pixel: those of the tile come first, then the patch's.
template <WeightConfig kConfig, Operand kOperand>
struct BoxLoader {
  static constexpr int kVector = operand_vector(kOperand);
  static constexpr int kBytes = operand_bytes(kOperand);
  static constexpr int kPlanes = kOctet / kVector;                 // of a batch
  static constexpr int kThreads = kConfig.threads();
  static constexpr int kInputUnits = kConfig.rows / kOctet * kConfig.pixels;
  static constexpr int kInputBatches = (kInputUnits + kThreads - 1) / kThreads;

  struct Batch {
    std::uint32_t word[kOctet];   // a channel each when gathered; packed, four per plane, when loaded whole
  };
  template <int kLanes>
  struct State {
    Lanes<Batch, kLanes> batch;
  };

  // Channels from the tile's first to the conv group's end.
  struct Left {
    std::int32_t input, patch;
  };
  CONVT_HOST_DEVICE static Left left_of(const WeightParams& params, const WeightTile& tile) {
    return {params.in_channels - tile.row_block * kConfig.rows,
            params.out_channels - tile.channel_block * params.block_octets * kOctet};
  }

  // Where a box lies in memory: first pixel, first channel.
  struct Origin {
    const char* input;
    const char* patch;
  };

  CONVT_HOST_DEVICE static std::int32_t batches(const WeightParams& params) {
    return kInputBatches + (params.pixels * params.block_octets + kThreads - 1) / kThreads;
  }

  // Of the first position: what boxes are told from.
  CONVT_HOST_DEVICE static Origin base(const WeightParams& params, const WeightTile& tile, const PatchBounds& bounds) {
    const std::int64_t row = std::int64_t(tile.conv_group) * params.in_channels + tile.row_block * kConfig.rows;
    const std::int64_t column =
        std::int64_t(tile.conv_group) * params.out_channels + tile.channel_block * params.block_octets * kOctet;
    std::int64_t patch = column * params.patch.input_strides[1];
    for (int axis = 0; axis < kAxes; ++axis) patch += bounds.low[axis] * params.patch.input_strides[2 + axis];
    return {static_cast<const char*>(params.input) + row * params.input_strides[1] * kBytes,
            static_cast<const char*>(params.patch.input) + patch * kBytes};
  }

  CONVT_HOST_DEVICE static Origin origin(const WeightParams& params, const Origin& base, const Tile& box) {
    std::int64_t input = box.q[0] * params.input_strides[0], patch = box.q[0] * params.patch.input_strides[0];
    for (int axis = 0; axis < kAxes; ++axis) {
      input += box.q[1 + axis] * params.input_strides[2 + axis];
      patch += box.q[1 + axis] * params.patch.axes[1 + axis].step * params.patch.input_strides[2 + axis];
    }
    return {base.input + input * kBytes, base.patch + patch * kBytes};
  }

  // Whether all positions and all pixels of the patch exist: such boxes have the same tables.
  CONVT_HOST_DEVICE static bool is_whole(const WeightParams& params, const PatchBounds& bounds, const Tile& box) {
    bool whole = box.count[0] == params.patch.axes[0].tile;
    for (int axis = 0; axis < kAxes; ++axis) {
      const TileAxis& along = params.patch.axes[1 + axis];
      const std::int64_t first = box.q[1 + axis] * along.step;
      whole = whole && box.count[1 + axis] == along.tile && first + bounds.low[axis] >= 0 &&
              first + bounds.high[axis] < along.input;
    }
    return whole;
  }

  // Element offsets of a box's pixels: its tile's, then its patch's. The first time also where in the patch they go.
  template <class Warp>
  CONVT_HOST_DEVICE static void tabulate(Warp& warp, const WeightParams& params, const ShiftGroup& group,
                                         const Tile& box, const char* tables, std::int32_t table, bool first) {
    warp.lanes([&](int lane) {
      for (std::int32_t position = warp.thread(lane); position < kConfig.pixels; position += kThreads) {
        std::int32_t rest = position, offset = 0;
        bool inside = true;
#pragma unroll
        for (int axis = kTileAxes - 1; axis >= 0; --axis) {
          const TileAxis& along = params.patch.axes[axis];
          const std::int32_t outer = along.by_tile.quotient(rest), digit = along.by_tile.remainder(rest, outer);
          inside = inside && digit < box.count[axis];
          offset += digit * std::int32_t(params.input_strides[axis == 0 ? 0 : 1 + axis]);
          rest = outer;
        }
        warp.template store<std::int32_t>(table + position * 4, inside && rest == 0 ? offset : -1);
      }
    });
    tabulate_patch<kThreads>(warp, params.patch, box, group, tables, table + 4 * kConfig.pixels,
                             first ? params.shared.place_table : 0);
  }

  // Issues the loads of a batch. Of either kind by the same instructions: no branch between them and their use.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void load(Warp& warp, State<kLanes>& state, const WeightParams& params, const Left& left,
                                     const Origin& origin, std::int32_t table, std::int32_t batch) {
    const bool is_input = batch < kInputBatches;
    const std::int64_t channel_bytes = (is_input ? params.input_strides[1] : params.patch.input_strides[1]) * kBytes;
    const char* const first = is_input ? origin.input : origin.patch;
    const std::int32_t channels = is_input ? left.input : left.patch;
    const std::int32_t octets = is_input ? kConfig.rows / kOctet : params.block_octets;
    const bool vectors = (is_input ? params.input_vectors : params.patch_vectors) != 0;
    warp.lanes([&](int lane) {
      const std::int32_t unit = warp.thread(lane) + batch * kThreads, own = unit - kInputBatches * kThreads;
      const std::int32_t octet = is_input ? unit / kConfig.pixels : params.by_pixels.quotient(own);
      const std::int32_t pixel =
          is_input ? unit % kConfig.pixels : kConfig.pixels + params.by_pixels.remainder(own, octet);
      std::int32_t offset = -1;
      if (octet < octets) offset = warp.template load<std::int32_t>(table + pixel * 4);
      gather_batch<kOperand>(warp, state.batch[lane].word,
                             first + octet * kOctet * channel_bytes + std::int64_t(offset) * kBytes, channel_bytes,
                             channels - octet * kOctet, offset >= 0, vectors);
    });
  }

  // Writes that batch to a stage.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void store(Warp& warp, State<kLanes>& state, const WeightParams& params, std::int32_t parity,
                                      std::int32_t batch) {
    warp.lanes([&](int lane) {
      const auto& word = state.batch[lane].word;
      const std::int32_t unit = warp.thread(lane) + batch * kThreads;
      if (batch < kInputBatches) {
        if (kInputUnits % kThreads != 0 && unit >= kInputUnits) return;
        const std::int32_t octet = unit / kConfig.pixels, pixel = unit % kConfig.pixels;
        const std::int32_t to = params.shared.input + parity * kConfig.input_stage_bytes(kOperand) +
                                (octet * kPlanes * kConfig.input_pitch() + pixel) * 16;
#pragma unroll
        for (int plane = 0; plane < kPlanes; ++plane) {
          warp.template store<Vector16>(to + plane * kConfig.input_pitch() * 16,
                                        pack_plane<kOperand>(word, plane, params.input_vectors != 0));
        }
      } else {
        const std::int32_t own = unit - kInputBatches * kThreads;
        const std::int32_t octet = params.by_pixels.quotient(own), pitch = patch_pitch(params.pixels) * 16;
        std::int32_t pixel = params.by_pixels.remainder(own, octet);
        if (octet >= params.block_octets) return;
        if (params.shared.place_table) {
          pixel = warp.template load<std::int32_t>(params.shared.place_table + pixel * 4);
        }
        const std::int32_t to =
            params.shared.patch + parity * params.shared.patch_stage_bytes + octet * kPlanes * pitch + pixel * 16;
#pragma unroll
        for (int plane = 0; plane < kPlanes; ++plane) {
          warp.template store<Vector16>(to + plane * pitch,
                                        pack_plane<kOperand>(word, plane, params.patch_vectors != 0));
        }
      }
    });
  }
};

}  // namespace convt
