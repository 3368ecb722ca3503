#pragma once

#include "arch/lanes.hpp"
#include "arch/tf32.hpp"
#include "collective/tile_scheduler.hpp"

namespace convt {

// Fetches the input patch of a channel chunk: planes [plane][patch pixel][16 bytes of channels], out-of-range input zero.
// Thread t owns pixels t, t + threads, ... A batch is what every thread has in flight at a time: some planes of one pixel.
template <TileConfig kConfig, Operand kOperand>
struct PatchLoader {
  static constexpr int kVector = operand_vector(kOperand);
  static constexpr int kChunk = kConfig.planes * kVector;             // channels
  static constexpr int kBytes = operand_bytes(kOperand);
  // Registers per batch: channels are gathered one by one, a register each. What products and residency leave: with more, the
  // compiler spills.
  static constexpr int batch_words() {
    if (kOperand == Operand::tf32) return 16;
    if (kOperand == Operand::ieee) {
      const bool full = kConfig.warp_rows() * kConfig.warp_pixels() == 64 * 64;
      return full && (kConfig.planes == 4 || kConfig.warps_m > 1) ? 4 : 8;
    }
    return kConfig.blocks > 2 ? 8 : 16;
  }
  static constexpr int kBatchWords = batch_words();
  static constexpr int kBatchPlanes = min_of(kConfig.planes, kBatchWords / kVector);
  static constexpr int kBatches = kConfig.planes / kBatchPlanes;      // per pixel
  static constexpr int kBatchChannels = kBatchPlanes * kVector;

  struct Batch {
    std::uint32_t word[kBatchChannels];   // a channel each when gathered; packed, four per plane, when loaded whole
  };
  template <int kLanes>
  struct State {
    Lanes<Batch, kLanes> batch;
  };

  CONVT_HOST_DEVICE static std::int32_t batches(const ShiftGroup& group) {
    return std::int32_t(std::uint32_t(group.pixels + kConfig.threads() - 1) / kConfig.threads()) * kBatches;
  }

  // Input coordinate of the first patch pixel along D, H or W.
  CONVT_HOST_DEVICE static std::int64_t first_of(const GemmParams& params, const Tile& tile, const ShiftGroup& group,
                                                 int axis) {
    return params.axes[1 + axis].step * (tile.q[1 + axis] - group.high[axis]) + group.offset[axis];
  }

  // Address of the first patch pixel, channel 0 of the group. Out of the tensor where the patch is: never read there.
  CONVT_HOST_DEVICE static const char* origin(const GemmParams& params, const Tile& tile, const ShiftGroup& group) {
    std::int64_t offset = tile.q[0] * params.input_strides[0] +
                          std::int64_t(tile.conv_group) * params.in_channels * params.input_strides[1];
    for (int axis = 0; axis < kAxes; ++axis) {
      offset += first_of(params, tile, group, axis) * params.input_strides[2 + axis];
    }
    return static_cast<const char*>(params.input) + offset * kBytes;
  }

  // Writes each thread's own pixels into the table: offset from the patch's origin in elements, or -1 outside the input. Where W
  // phases alternate in memory so do a thread's neighbours, and a second table says where in the patch a pixel goes.
  template <class Warp>
  CONVT_HOST_DEVICE static void tabulate(Warp& warp, const GemmParams& params, const Tile& tile,
                                         const ShiftGroup& group) {
    std::int32_t low[kTileAxes],
        high[kTileAxes];   // input pixels from the patch's first; nothing beyond its last is asked for
    for (int axis = 0; axis < kTileAxes; ++axis) {
      const std::int64_t first = axis == 0 ? tile.q[0] : first_of(params, tile, group, axis - 1);
      const std::int64_t left = params.axes[axis].input - first;
      constexpr std::int64_t most = 0x7fffffff;
      low[axis] = std::int32_t(first < 0 ? (-first < most ? -first : most) : 0);
      high[axis] = std::int32_t(left < most ? (left < 0 ? 0 : left) : most);
    }
    warp.lanes([&](int lane) {
      for (std::int32_t pixel = warp.thread(lane); pixel < group.pixels; pixel += kConfig.threads()) {
        std::int32_t rest = pixel, offset = 0, place = pixel;
        bool inside = true;
#pragma unroll
        for (int axis = 0; axis < kTileAxes; ++axis) {
          std::int32_t at = rest, beyond = 0;
          if (axis < kTileAxes - 1) {
            at = group.by_pitch[axis].quotient(rest);
            rest = group.by_pitch[axis].remainder(rest, at);
          } else if (group.row != 0 && inside) {
            // Read anew for every pixel, which is rare enough: kept, it would take the registers of the main loop.
            const char* const phases = params.tables + group.row;
            const RowPhases row = warp.template reread<RowPhases>(phases);
            if (rest < row.columns * row.count) {
              at = row.by_count.quotient(rest);
              const std::int32_t phase = row.by_count.remainder(rest, at);
              place += phase * row.columns + at - rest;
              beyond = warp.template reread<std::int32_t>(phases + sizeof(RowPhases) + phase * 4);
            }
          }
          inside = inside && at < group.extent[axis];
          at = at * params.axes[axis].step + beyond;
          inside = inside && at >= low[axis] && at < high[axis];
          offset += at * std::int32_t(params.input_strides[axis == 0 ? 0 : axis + 1]);
        }
        if (params.shared.place_table) {
          warp.template store<std::int32_t>(params.shared.place_table + pixel * 4, place);
        }
        warp.template store<std::int32_t>(params.shared.pixel_table + pixel * 4, inside ? offset : -1);
      }
    });
  }

  // Issues the loads of a batch.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void load(Warp& warp, State<kLanes>& state, const GemmParams& params,
                                     const ShiftGroup& group, const char* patch_origin, std::int32_t chunk,
                                     std::int32_t batch) {
    const Place at = place(batch);
    const std::int64_t channel_bytes = params.input_strides[1] * kBytes;
    const std::int32_t channel = chunk * kChunk + at.plane * kVector, left = params.in_channels - channel;
    const char* const first = patch_origin + channel * channel_bytes;
    warp.lanes([&](int lane) {
      auto& word = state.batch[lane].word;
      const std::int32_t pixel = warp.thread(lane) + at.pixel;
      std::int32_t offset = -1;
      if (pixel < group.pixels) offset = warp.template load<std::int32_t>(params.shared.pixel_table + pixel * 4);
      const char* source = first + std::int64_t(offset) * kBytes;
#pragma unroll
      for (int at_word = 0; at_word < kBatchChannels; ++at_word) word[at_word] = 0;
      if (params.input_vectors) {
        if (offset < 0) return;
#pragma unroll
        for (int plane = 0; plane < kBatchPlanes; ++plane) {
          if (plane * kVector >= left) break;
          const Vector16 loaded = warp.template global<Vector16>(source + plane * 16);
#pragma unroll
          for (int at_word = 0; at_word < 4; ++at_word) word[plane * 4 + at_word] = loaded.word[at_word];
        }
      } else if (left >= kBatchChannels) {
        if (offset < 0) return;
#pragma unroll
        for (int at_word = 0; at_word < kBatchChannels; ++at_word, source += channel_bytes) {
          word[at_word] = element(warp, source);
        }
      } else {
#pragma unroll
        for (int at_word = 0; at_word < kBatchChannels; ++at_word, source += channel_bytes) {
          if (offset >= 0 && at_word < left) word[at_word] = element(warp, source);
        }
      }
    });
  }

  // Writes that batch to the patch, rounded to TF32 where that is the operand.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void store(Warp& warp, State<kLanes>& state, const GemmParams& params,
                                      const ShiftGroup& group, std::int32_t patch, std::int32_t batch) {
    const Place at = place(batch);
    const std::int32_t first = patch + at.plane * group.pixels * 16, pitch = group.pixels * 16;
    warp.lanes([&](int lane) {
      std::int32_t own = warp.thread(lane) + at.pixel;
      if (own >= group.pixels) return;
      if (params.shared.place_table) own = warp.template load<std::int32_t>(params.shared.place_table + own * 4);
      const auto& word = state.batch[lane].word;
#pragma unroll
      for (int plane = 0; plane < kBatchPlanes; ++plane) {
        Vector16 packed;
#pragma unroll
        for (int at_word = 0; at_word < 4; ++at_word) {
          if constexpr (kOperand == Operand::tf32) {
            packed.word[at_word] = nearest_tf32_operand(word[plane * 4 + at_word]);
          } else if constexpr (kOperand == Operand::ieee) {
            packed.word[at_word] = word[plane * 4 + at_word];
          } else {
            const int gathered = plane * 8 + 2 * at_word;
            packed.word[at_word] =
                params.input_vectors ? word[plane * 4 + at_word] : word[gathered] | word[gathered + 1] << 16;
          }
        }
        warp.template store<Vector16>(first + own * 16 + plane * pitch, packed);
      }
    });
  }

  // The first patch, before there are sums to keep: several batches on their way at a time.
  template <int kLanes, class Warp>
  CONVT_HOST_DEVICE static void load_whole(Warp& warp, const GemmParams& params, const ShiftGroup& group,
                                           const char* patch_origin, std::int32_t chunk, std::int32_t patch) {
    constexpr int together = kOperand == Operand::tf32 ? 4 : 2;
    State<kLanes> state[together];
    const std::int32_t count = batches(group);
#pragma unroll 1
    for (std::int32_t first = 0; first < count; first += together) {
#pragma unroll
      for (int at = 0; at < together; ++at) {
        if (first + at < count) load(warp, state[at], params, group, patch_origin, chunk, first + at);
      }
#pragma unroll
      for (int at = 0; at < together; ++at) {
        if (first + at < count) store(warp, state[at], params, group, patch, first + at);
      }
    }
  }

 private:
  struct Place {
    std::int32_t pixel;   // of thread 0
    std::int32_t plane;
  };
  CONVT_HOST_DEVICE static Place place(std::int32_t batch) {
    const std::uint32_t at = std::uint32_t(batch);
    return {std::int32_t(at / kBatches) * kConfig.threads(), std::int32_t(at % kBatches) * kBatchPlanes};
  }

  template <class Warp>
  CONVT_HOST_DEVICE static std::uint32_t element(Warp& warp, const char* source) {
    if constexpr (kBytes == 4) {
      return warp.template global<std::uint32_t>(source);
    } else {
      return warp.template global<std::uint16_t>(source);
    }
  }
};

}  // namespace convt
