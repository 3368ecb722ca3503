#pragma once

#include <cstring>

#include "arch/lanes.hpp"
#include "arch/tf32.hpp"
#include "config/tile_config.hpp"
#include "geometry/fast_divisor.hpp"
#include "geometry/problem.hpp"

namespace convt {

// How neighbouring elements of the source are fetched.
//   pixels: they lie one behind the other, `piece` bytes at a time.   channels: so do they, whole vectors.
//   singly: one by one, wherever they are.
enum class TurnFrom : std::int32_t { pixels, channels, singly };

// What a tensor that no copy can take boxes of is turned to first: [group][image][pixel][channel], float32 rounded to the nearest TF32.
// A copy of a group's channels finds none of the next group's behind them: what it spans beyond them is zero.
struct TurnParams {
  const void* source;
  void* target;                     // aligned to 16 bytes
  std::int64_t strides[2 + kAxes];  // of the source: N, C, D, H, W, elements
  std::int64_t pixels;              // of an image
  std::int32_t channels;            // of a group; those between them and `pitch` are zero
  std::int32_t pitch;
  std::int32_t groups;
  std::int32_t images;
  TurnFrom from;
  std::int32_t piece;               // every channel of an image has whole, aligned ones
  std::int32_t vectors_log2;        // of channels, in a tile: 0 to 3
  FastDivisor by_width, by_height, by_pitch, by_channel_blocks, by_pixel_blocks;
};

// A thread block turns a tile of 8 KB in shared memory: 128 bytes of channels and 64 pixels, or fewer and more. Both tensors are met as
// they lie. Between them is a line of vectors for every pixel. The eight vectors of 128 bytes change places by the vector of pixels
// that they belong to: neither the words of those who fetch nor the vectors of those who store meet in a bank.
template <Operand kOperand>
struct TurnInput {
  using Params = TurnParams;
  using Element = std::conditional_t<is_float32(kOperand), std::uint32_t, std::uint16_t>;
  static constexpr int kThreads = 256, kMaxThreads = kThreads, kMinBlocks = 4;
  static constexpr int kVector = operand_vector(kOperand);
  static constexpr int kVectors = 512;     // of a tile
  static constexpr int kRounds = kVectors / kThreads;
  static constexpr int kWord = 4 / int(sizeof(Element));   // channels of a word
  static constexpr int kShared = kVectors * 4;             // words

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

  // Eight neighbouring threads fetch as many vectors of neighbouring pixels, four by four a vector of channels.
  static CONVT_HOST_DEVICE void fetch(const TurnParams& params, std::int32_t index, int thread, std::uint32_t* shared) {
    if (params.from == TurnFrom::channels) return;
    const Tile tile = tile_at(params, index);
    if (params.from == TurnFrom::singly) {
      return fetch_by(params, tile, thread, shared, [&](const Source& from, std::int32_t first) {
        return singles(params, tile, from.offset, first);
      });
    }
    const auto in = [&](auto piece) {
      fetch_by(params, tile, thread, shared, [&](const Source& from, std::int32_t first) {
        return pieces<decltype(piece)>(params, tile, from.offset, first);
      });
    };
    switch (params.piece) {
      case 16:
        return in(Vector16{});
      case 8:
        return in(std::uint64_t{});
      case 4:
        return in(std::uint32_t{});
      default:
        return in(Element{});
    }
  }

  // Neighbouring threads store neighbouring vectors of channels of a pixel.
  static CONVT_HOST_DEVICE void store(const TurnParams& params, std::int32_t index, int thread,
                                      const std::uint32_t* shared) {
    const Tile tile = tile_at(params, index);
    const std::int64_t all_pixels = params.images * params.pixels;
    Vector16 vector[kRounds];
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const Place at = place(params, round * kThreads + thread);
      if (params.from != TurnFrom::channels) {
        vector[round] = *reinterpret_cast<const Vector16*>(shared + line(params, at.pixel, at.vector));
        continue;
      }
      const Source from = source_of(params, tile.channel + at.vector * kVector);
      vector[round] = Vector16{};
      if (from.there && tile.pixel + at.pixel < params.pixels) {
        vector[round] = *reinterpret_cast<const Vector16*>(pixel_of(params, tile, at.pixel) + from.offset);
      }
    }
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const Place at = place(params, round * kThreads + thread);
      const std::int32_t channel = tile.channel + at.vector * kVector;
      const std::int32_t group = params.by_pitch.quotient(channel);
      if (tile.pixel + at.pixel >= params.pixels || group >= params.groups) continue;
      if constexpr (is_float32(kOperand)) {
#pragma unroll
        for (std::uint32_t& word : vector[round].word) word = nearest_tf32_operand(word);
      }
      const std::int64_t pixel = group * all_pixels + tile.image * params.pixels + tile.pixel + at.pixel;
      const std::int64_t to = pixel * params.pitch + params.by_pitch.remainder(channel, group);
      *reinterpret_cast<Vector16*>(static_cast<Element*>(params.target) + to) = vector[round];
    }
  }

#ifdef __CUDACC__
  __device__ void operator()(const TurnParams& params) const {
    __shared__ __align__(16) std::uint32_t shared[kShared];
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

  struct Place {
    std::int32_t pixel, vector;   // of the tile
  };
  static CONVT_HOST_DEVICE Place place(const TurnParams& params, int at) {
    return {at >> params.vectors_log2, at & ((1 << params.vectors_log2) - 1)};
  }
  // The word where a vector of channels of a pixel lies.
  static CONVT_HOST_DEVICE std::int32_t line(const TurnParams& params, std::int32_t pixel, std::int32_t vector) {
    return (((pixel << params.vectors_log2) + vector) ^ (pixel / kVector & 7)) * 4;
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

  // `fetched(source, pixel)`: a vector of neighbouring pixels of a channel.
  template <class Fetched>
  static CONVT_HOST_DEVICE void fetch_by(const TurnParams& params, const Tile& tile, int thread, std::uint32_t* shared,
                                         Fetched fetched) {
    constexpr int rounds = kRounds / kWord, across_log2 = 3;   // vectors of pixels side by side
    const std::int32_t more_log2 = (is_float32(kOperand) ? 4 : 3) - params.vectors_log2 + 3 - across_log2;
    Vector16 channels[rounds][kWord];
    std::int32_t first[rounds], vector[rounds];
    const std::int32_t word = thread >> across_log2 & 3;
#pragma unroll
    for (int round = 0; round < rounds; ++round) {
      const std::int32_t rest = (round * kThreads + thread) >> (across_log2 + 2);
      const std::int32_t further = rest & ((1 << more_log2) - 1);
      first[round] = ((thread & ((1 << across_log2) - 1)) | further << across_log2) * kVector;
      vector[round] = rest >> more_log2;
#pragma unroll
      for (int at = 0; at < kWord; ++at) {
        const Source from = source_of(params, tile.channel + vector[round] * kVector + word * kWord + at);
        channels[round][at] = Vector16{};
        if (from.there) channels[round][at] = fetched(from, first[round]);
      }
    }
#pragma unroll
    for (int round = 0; round < rounds; ++round) {
#pragma unroll
      for (int pixel = 0; pixel < kVector; ++pixel) {
        shared[line(params, first[round] + pixel, vector[round]) + word] = word_of(channels[round], pixel);
      }
    }
  }

  // Of so many channels, what they have of a pixel.
  static CONVT_HOST_DEVICE std::uint32_t word_of(const Vector16 (&channels)[kWord], int pixel) {
    if constexpr (kWord == 1) {
      return channels[0].word[pixel];
    } else {
      return halves_of(channels[0].word[pixel / 2], channels[1].word[pixel / 2], pixel % 2);
    }
  }

  template <class Piece>
  static CONVT_HOST_DEVICE Vector16 pieces(const TurnParams& params, const Tile& tile, std::int64_t offset,
                                           std::int32_t first) {
    constexpr int elements = int(sizeof(Piece) / sizeof(Element));
    const std::int64_t begin = tile.pixel + first;
    const auto* const from = reinterpret_cast<const Piece*>(static_cast<const Element*>(params.source) +
                                                            tile.image * params.strides[0] + offset + begin);
    Piece piece[kVector / elements];
#pragma unroll
    for (int at = 0; at < kVector / elements; ++at) {
      piece[at] = Piece{};
      if (begin + at * elements < params.pixels) piece[at] = from[at];
    }
    Vector16 vector;
    std::memcpy(&vector, piece, sizeof(vector));
    return vector;
  }

  static CONVT_HOST_DEVICE Vector16 singles(const TurnParams& params, const Tile& tile, std::int64_t offset,
                                            std::int32_t first) {
    Element element[kVector];
#pragma unroll
    for (int at = 0; at < kVector; ++at) {
      element[at] = 0;
      if (tile.pixel + first + at < params.pixels) element[at] = pixel_of(params, tile, first + at)[offset];
    }
    Vector16 vector;
    std::memcpy(&vector, element, sizeof(vector));
    return vector;
  }
};

}  // namespace convt
