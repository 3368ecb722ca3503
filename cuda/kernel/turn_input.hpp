#pragma once

#include "arch/lanes.hpp"
#include "arch/tf32.hpp"
#include "config/tile_config.hpp"
#include "geometry/fast_divisor.hpp"
#include "geometry/problem.hpp"

namespace convt {

// How neighbouring elements of the source are fetched.
//   pixels: they lie one behind the other, 16 bytes at a time wherever these begin.   channels: so do they, whole vectors.
//   singly: one by one, wherever they are.
enum class TurnFrom : std::int32_t { pixels, channels, singly };

// What a tensor that no copy can take boxes of is turned to first: [image][pixel][group][channel], float32 rounded to the nearest TF32.
struct TurnParams {
  const void* source;
  void* target;                     // aligned to 16 bytes
  std::int64_t strides[2 + kAxes];  // of the source: N, C, D, H, W, elements
  std::int64_t elements;            // from the source's first to its last
  std::int64_t pixels;              // of an image
  std::int32_t channels;            // of a group; those between them and `pitch` are zero
  std::int32_t pitch;
  std::int32_t groups;
  std::int32_t images;
  TurnFrom from;
  std::int32_t vectors_log2;        // of channels, in a tile: 1 to 3
  FastDivisor by_width, by_height, by_pitch, by_channel_blocks, by_pixel_blocks;
};

// A thread block turns a tile of 8 KB in shared memory: 128 bytes of channels and 64 pixels, or fewer and more. Both tensors are met as
// they lie.
template <Operand kOperand>
struct TurnInput {
  using Params = TurnParams;
  using Element = std::conditional_t<is_float32(kOperand), std::uint32_t, std::uint16_t>;
  static constexpr int kThreads = 256, kMaxThreads = kThreads, kMinBlocks = 4;
  static constexpr int kVector = operand_vector(kOperand);
  static constexpr int kVectors = 512;     // of a tile
  static constexpr int kRounds = kVectors / kThreads;
  // Of a channel's pixels, with a word more: lanes meet in two banks at most.
  static constexpr int kPad = 4 / int(sizeof(Element));
  static constexpr int kShared = kVectors * kVector + 8 * kVector * kPad;

  static CONVT_HOST_DEVICE std::int32_t tile_pixels(const TurnParams& params) {
    return kVectors >> params.vectors_log2;
  }
  static CONVT_HOST_DEVICE std::int32_t tile_channels(const TurnParams& params) {
    return kVector << params.vectors_log2;
  }
  static CONVT_HOST_DEVICE std::int64_t pixel_blocks(const TurnParams& params) {
    return ceil_div(params.pixels, std::int64_t(tile_pixels(params)));
  }
  static CONVT_HOST_DEVICE std::int64_t channel_blocks(const TurnParams& params) {
    return ceil_div(std::int64_t(params.groups) * params.pitch, std::int64_t(tile_channels(params)));
  }
  static CONVT_HOST_DEVICE std::int64_t tiles(const TurnParams& params) {
    return params.images * pixel_blocks(params) * channel_blocks(params);
  }

  // Neighbouring threads fetch neighbouring pixels of a channel.
  static CONVT_HOST_DEVICE void fetch(const TurnParams& params, std::int32_t index, int thread, Element* shared) {
    if (params.from == TurnFrom::channels) return;
    const Tile tile = tile_at(params, index);
    if (params.from == TurnFrom::pixels) {
      fetch_pieces(params, tile, thread, shared);
    } else {
      fetch_singly(params, tile, thread, shared);
    }
  }

  // Neighbouring threads store neighbouring channels of a pixel.
  static CONVT_HOST_DEVICE void store(const TurnParams& params, std::int32_t index, int thread, const Element* shared) {
    const Tile tile = tile_at(params, index);
    const std::int32_t width = params.groups * params.pitch, pitch = tile_pixels(params) + kPad;
    Piece piece[kRounds];
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const Place at = place(params, round * kThreads + thread);
      if (params.from != TurnFrom::channels) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) piece[round].element[i] = shared[(at.channel + i) * pitch + at.pixel];
      } else {
        const Source from = source_of(params, tile.channel + at.channel);
        piece[round] = Piece{};
        if (from.there && tile.pixel + at.pixel < params.pixels) {
          piece[round] = *reinterpret_cast<const Piece*>(pixel_of(params, tile, at.pixel) + from.offset);
        }
      }
    }
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const Place at = place(params, round * kThreads + thread);
      if (tile.pixel + at.pixel >= params.pixels || tile.channel + at.channel >= width) continue;
      const auto& element = piece[round].element;
      Vector16 whole;
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        if constexpr (is_float32(kOperand)) {
          whole.word[word] = nearest_tf32_operand(element[word]);
        } else {
          whole.word[word] = element[2 * word] | std::uint32_t(element[2 * word + 1]) << 16;
        }
      }
      const std::int64_t to = (tile.image * params.pixels + tile.pixel + at.pixel) * width + tile.channel + at.channel;
      *reinterpret_cast<Vector16*>(static_cast<Element*>(params.target) + to) = whole;
    }
  }

#ifdef __CUDACC__
  __device__ void operator()(const TurnParams& params) const {
    __shared__ Element shared[kShared];
    const auto count = std::int32_t(tiles(params));
    for (std::int32_t tile = blockIdx.x; tile < count; tile += gridDim.x) {
      fetch(params, tile, threadIdx.x, shared);
      __syncthreads();
      store(params, tile, threadIdx.x, shared);
      __syncthreads();
    }
  }
#endif

 private:
  struct alignas(16) Piece {
    Element element[kVector];
  };
  struct Tile {
    std::int64_t image, pixel;
    std::int32_t channel;
  };
  static CONVT_HOST_DEVICE Tile tile_at(const TurnParams& params, std::int32_t index) {
    const std::int32_t rest = params.by_channel_blocks.quotient(index);
    const std::int32_t image = params.by_pixel_blocks.quotient(rest);
    return {image, std::int64_t(params.by_pixel_blocks.remainder(rest, image)) * tile_pixels(params),
            params.by_channel_blocks.remainder(index, rest) * tile_channels(params)};
  }

  // In a tile: the channels of one pixel go to neighbouring threads.
  struct Place {
    std::int32_t pixel, channel;
  };
  static CONVT_HOST_DEVICE Place place(const TurnParams& params, int at) {
    return {at >> params.vectors_log2, (at & ((1 << params.vectors_log2) - 1)) * kVector};
  }

  // Where a channel of the target comes from.
  struct Source {
    std::int64_t offset;
    bool there;
  };
  static CONVT_HOST_DEVICE Source source_of(const TurnParams& params, std::int32_t channel) {
    const std::int32_t group = params.by_pitch.quotient(channel), within = params.by_pitch.remainder(channel, group);
    return {(std::int64_t(group) * params.channels + within) * params.strides[1],
            group < params.groups && within < params.channels};
  }
  static CONVT_HOST_DEVICE const Element* pixel_of(const TurnParams& params, const Tile& tile, std::int32_t within) {
    const auto pixel = std::int32_t(tile.pixel + within);
    const std::int32_t row = params.by_width.quotient(pixel), slice = params.by_height.quotient(row);
    return static_cast<const Element*>(params.source) + tile.image * params.strides[0] + slice * params.strides[2] +
           params.by_height.remainder(row, slice) * params.strides[3] +
           params.by_width.remainder(pixel, row) * params.strides[4];
  }

  static CONVT_HOST_DEVICE void fetch_singly(const TurnParams& params, const Tile& tile, int thread, Element* shared) {
    constexpr int rounds = kVectors * kVector / kThreads;
    const std::int32_t pixels = tile_pixels(params), pitch = pixels + kPad;
    Element element[rounds];
#pragma unroll
    for (int round = 0; round < rounds; ++round) {
      const std::int32_t at = round * kThreads + thread, within = at & (pixels - 1), channel = at / pixels;
      const Source from = source_of(params, tile.channel + channel);
      element[round] = 0;
      if (from.there && tile.pixel + within < params.pixels) {
        element[round] = pixel_of(params, tile, within)[from.offset];
      }
    }
#pragma unroll
    for (int round = 0; round < rounds; ++round) {
      const std::int32_t at = round * kThreads + thread;
      shared[at / pixels * pitch + (at & (pixels - 1))] = element[round];
    }
  }

  // Vectors of 16 bytes as they lie in memory. A channel's pixels may begin within one: the last round has what the others lack.
  static CONVT_HOST_DEVICE void fetch_pieces(const TurnParams& params, const Tile& tile, int thread, Element* shared) {
    const std::int32_t pixels = tile_pixels(params), pitch = pixels + kPad, across = pixels / kVector;
    const auto* const source = static_cast<const Element*>(params.source);
    const std::int64_t image = tile.image * params.strides[0] + tile.pixel;
    const std::int64_t left = params.pixels - tile.pixel;
    Piece piece[kRounds + 1];
    std::int32_t first[kRounds + 1], row[kRounds + 1];   // pixel of the tile, and channel
#pragma unroll
    for (int round = 0; round <= kRounds; ++round) {
      const std::int32_t at = round * kThreads + thread;
      const std::int32_t channel = round < kRounds ? at / across : thread;
      const Source from = source_of(params, tile.channel + channel);
      const Element* const begin = source + image + from.offset;
      const auto behind = std::int32_t(reinterpret_cast<std::uintptr_t>(begin) / sizeof(Element) % kVector);
      first[round] = (round < kRounds ? at & (across - 1) : across) * kVector - behind;
      row[round] = channel < tile_channels(params) && first[round] < pixels ? channel : -1;
      piece[round] = Piece{};
      if (!from.there || row[round] < 0 || first[round] >= left) continue;
      const std::int64_t offset = image + from.offset + first[round];
      if (offset >= 0 && offset + kVector <= params.elements) {
        piece[round] = *reinterpret_cast<const Piece*>(source + offset);
      } else {
        for (int i = 0; i < kVector; ++i) {
          if (offset + i >= 0 && offset + i < params.elements) piece[round].element[i] = source[offset + i];
        }
      }
    }
#pragma unroll
    for (int round = 0; round <= kRounds; ++round) {
      if (row[round] < 0) continue;
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const std::int32_t within = first[round] + i;
        if (within >= 0 && within < pixels) shared[row[round] * pitch + within] = piece[round].element[i];
      }
    }
  }
};

}  // namespace convt
