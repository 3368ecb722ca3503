#pragma once

#include "arch/lanes.hpp"
#include "arch/tf32.hpp"
#include "collective/channel_batch.hpp"
#include "collective/patch_table.hpp"

namespace convt {

// Fetches the input patch of a channel chunk: planes [plane][patch pixel][16 bytes of channels], out-of-range input zero.
// Loader t owns pixels t, t + loaders, ... A batch is what every thread has in flight at a time: some planes of one pixel.
template <TileConfig kConfig, Operand kOperand>
struct PatchLoader {
  static constexpr int kVector = operand_vector(kOperand);
  static constexpr int kChunk = kConfig.planes * kVector;             // channels
  static constexpr int kBytes = operand_bytes(kOperand);
  static constexpr bool kFewRegisters = kConfig.blocks > 3;  // four thread blocks share them: none for a second way
  // Registers per batch: channels are gathered one by one, a register each. What products and residency leave: with more, the
  // compiler spills.
  static constexpr int batch_words() {
    if (kOperand == Operand::tf32) return kFewRegisters ? 8 : 16;
    if (kOperand == Operand::ieee) {
      const bool full = kConfig.warp_rows() * kConfig.warp_pixels() == 64 * 64;
      return (full && kConfig.planes == 4) || kFewRegisters ? 4 : 8;
    }
    return kConfig.blocks > 2 ? 8 : 16;
  }
  static constexpr int kBatchWords = batch_words();
  static constexpr int kBatchPlanes = min_of(kConfig.planes, kBatchWords / kVector);
  static constexpr int kBatches = kConfig.planes / kBatchPlanes;  // per pixel
  static constexpr int kBatchChannels = kBatchPlanes * kVector;
  static constexpr int kBatchVectors = min_of(kConfig.planes, kBatchWords / 4);
  static constexpr int kVectorBatches = kConfig.planes / kBatchVectors;

  struct Batch {
    std::uint32_t word[kBatchChannels];  // a channel each when gathered; packed, four per plane, when loaded whole
  };
  template <int kLanes>
  struct State {
    Lanes<Batch, kLanes> batch;
  };

  CONVT_HOST_DEVICE static std::int32_t batches(const GemmParams& params, const ShiftGroup& group) {
    const std::int32_t rounds = std::int32_t(std::uint32_t(group.pixels + kConfig.loaders() - 1) / kConfig.loaders());
    return rounds * (is_vectors(params) ? kVectorBatches : kBatches);
  }

  // Writes each thread's own pixels into the tables.
  template <class Warp>
  CONVT_HOST_DEVICE static void tabulate(Warp& warp, const GemmParams& params, const Tile& tile,
                                         const ShiftGroup& group) {
    warp.sync();  // lanes look up each other's pixels
    tabulate_patch<kConfig.loaders()>(warp, params, tile, group, params.tables, params.shared.pixel_table,
                                      params.shared.place_table);
    warp.sync();
  }

  CONVT_HOST_DEVICE static const char* origin(const GemmParams& params, const Tile& tile, const ShiftGroup& group) {
    return patch_origin<kBytes>(params, tile, group,
                                std::int64_t(tile.conv_group) * params.in_channels * params.input_strides[1]);
  }

  // Issues the loads of a batch.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void load(Warp& warp, State<kLanes>& state, const GemmParams& params,
                                     const ShiftGroup& group, const char* patch_origin, std::int32_t chunk,
                                     std::int32_t batch) {
    if (is_vectors(params)) return load_vectors(warp, state, params, group, patch_origin, chunk, batch);
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
      if constexpr (kFewRegisters) {
        if (params.input_vectors) return gather_vectors<kOperand>(warp, word, source, left, offset >= 0);
        gather_each<kOperand>(warp, word, source, channel_bytes, left, offset >= 0);
      } else {
        gather_batch<kOperand>(warp, word, source, channel_bytes, left, offset >= 0, false);
      }
    });
  }

  // Writes that batch to the patch, rounded to TF32 where that is the operand.
  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void store(Warp& warp, State<kLanes>& state, const GemmParams& params,
                                      const ShiftGroup& group, std::int32_t patch, std::int32_t batch) {
    if (is_vectors(params)) return store_vectors(warp, state, params, group, patch, batch);
    const Place at = place(batch);
    const std::int32_t first = patch + at.plane * group.pixels * 16, pitch = group.pixels * 16;
    warp.lanes([&](int lane) {
      std::int32_t own = warp.thread(lane) + at.pixel;
      if (own >= group.pixels) return;
      if (params.shared.place_table) own = warp.template load<std::int32_t>(params.shared.place_table + own * 4);
      const auto& word = state.batch[lane].word;
#pragma unroll
      for (int plane = 0; plane < kBatchPlanes; ++plane) {
        warp.template store<Vector16>(first + own * 16 + plane * pitch,
                                      pack_plane<kOperand>(word, plane, params.input_vectors != 0));
      }
    });
  }

  // The first patch, before there are sums to keep: several batches on their way at a time.
  template <int kLanes, class Warp>
  CONVT_HOST_DEVICE static void load_whole(Warp& warp, const GemmParams& params, const ShiftGroup& group,
                                           const char* patch_origin, std::int32_t chunk, std::int32_t patch) {
    constexpr int together = kOperand == Operand::tf32 ? 4 : 2;
    State<kLanes> state[together];
    const std::int32_t count = batches(params, group);
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
  CONVT_HOST_DEVICE static bool is_vectors(const GemmParams& params) {
    return !kFewRegisters && params.input_vectors != 0;
  }

  // Channels that lie side by side: of the pixels of a warp neighbouring lanes fetch all vectors, so that whole sectors are asked for.
  struct Vector {
    std::int32_t pixel, plane;
  };
  CONVT_HOST_DEVICE static Vector vector_of(std::int32_t thread, int lane, std::int32_t batch, int at) {
    static_assert(32 % kConfig.planes == 0);
    const std::uint32_t round = std::uint32_t(batch) / kVectorBatches,
                        turn = std::uint32_t(batch) % kVectorBatches * kBatchVectors + at;
    const std::int32_t in_warp = std::int32_t(turn) * (32 / kConfig.planes) + lane / kConfig.planes;
    return {std::int32_t(round) * kConfig.loaders() + thread - lane + in_warp, lane % kConfig.planes};
  }

  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void load_vectors(Warp& warp, State<kLanes>& state, const GemmParams& params,
                                             const ShiftGroup& group, const char* patch_origin, std::int32_t chunk,
                                             std::int32_t batch) {
    const char* const first = patch_origin + chunk * kChunk * kBytes;
    const std::int32_t left = params.in_channels - chunk * kChunk;
    warp.lanes([&](int lane) {
      auto& word = state.batch[lane].word;
#pragma unroll
      for (int at = 0; at < kBatchVectors; ++at) {
        const Vector own = vector_of(warp.thread(lane), lane, batch, at);
        std::int32_t offset = -1;
        if (own.pixel < group.pixels && own.plane * kVector < left) {
          offset = warp.template load<std::int32_t>(params.shared.pixel_table + own.pixel * 4);
        }
        const Vector16 loaded = warp.vector_if(offset >= 0, first + std::int64_t(offset) * kBytes + own.plane * 16);
#pragma unroll
        for (int i = 0; i < 4; ++i) word[at * 4 + i] = loaded.word[i];
      }
    });
  }

  template <class Warp, int kLanes>
  CONVT_HOST_DEVICE static void store_vectors(Warp& warp, State<kLanes>& state, const GemmParams& params,
                                              const ShiftGroup& group, std::int32_t patch, std::int32_t batch) {
    warp.lanes([&](int lane) {
      const auto& word = state.batch[lane].word;
#pragma unroll
      for (int at = 0; at < kBatchVectors; ++at) {
        const Vector own = vector_of(warp.thread(lane), lane, batch, at);
        if (own.pixel >= group.pixels) continue;
        std::int32_t pixel = own.pixel;
        if (params.shared.place_table) pixel = warp.template load<std::int32_t>(params.shared.place_table + pixel * 4);
        warp.template store<Vector16>(patch + (own.plane * group.pixels + pixel) * 16,
                                      pack_plane<kOperand>(word, at, true));
      }
    });
  }

  struct Place {
    std::int32_t pixel;  // of thread 0
    std::int32_t plane;
  };
  CONVT_HOST_DEVICE static Place place(std::int32_t batch) {
    const std::uint32_t at = std::uint32_t(batch);
    return {std::int32_t(at / kBatches) * kConfig.loaders(), std::int32_t(at % kBatches) * kBatchPlanes};
  }
};

}  // namespace convt
