#pragma once

#include <cstddef>
#include <type_traits>

#include "arch/tf32.hpp"
#include "collective/outer_params.hpp"

namespace convt {

// Copies boxes to shared memory as they lie in memory, 16 bytes at a time where pixels or channels allow it, past the registers. A
// table says where the pixels of any box lie, and a window of each box which of them exist: a thread keeps to its pixels and goes from
// channel to channel by additions.
template <OuterConfig kConfig, Operand kOperand, Innermost kInner>
struct OuterLoader {
  static constexpr int kBytes = operand_bytes(kOperand), kVector = operand_vector(kOperand);
  static constexpr int kThreads = kConfig.loaders(), kPixels = kConfig.pixels(kOperand);
  static constexpr bool kAlongChannels = kInner == Innermost::channels;
  // Float32 whose channels are innermost turns on its way: the tensor cores read TF32 along the reduction alone.
  static constexpr bool kTurns = kAlongChannels && is_float32(kOperand);
  static constexpr int kCopies = 4;   // whose addresses a thread finds before it starts them
  static constexpr int kTogether =
      kConfig.loading < 8 || kTurns ? 4 : 8;   // elements on their way through a thread's registers
  static constexpr int kUnits = kConfig.channels / 4 * kPixels / 4 / kThreads;   // 4 by 4 elements each, of a thread

  // Channels from the tile's first to the conv group's end.
  struct Left {
    std::int32_t input, patch;
  };
  CONVT_HOST_DEVICE static Left left_of(const OuterParams& params, const WeightTile& tile) {
    return {params.in_channels - tile.row_block * kConfig.channels,
            params.out_channels - tile.channel_block * params.block_octets * kOctet};
  }

  // Finds the next boxes of [index, end), one per thread: there are too many axes for everybody to do it every time.
  template <class Warp>
  CONVT_HOST_DEVICE static void find_boxes(Warp& warp, const OuterParams& params, const WeightTile& tile,
                                           const char* block, std::int32_t index) {
    static_assert(kToldBoxes <= kThreads);
    warp.lanes([&](int lane) {
      const std::int32_t own = kThreads - 1 - warp.thread(lane);
      if (own >= kToldBoxes || index + own >= tile.end_box) return;
      const std::int64_t row = std::int64_t(tile.conv_group) * params.in_channels + tile.row_block * kConfig.channels;
      const std::int64_t column =
          std::int64_t(tile.conv_group) * params.out_channels + tile.channel_block * params.block_octets * kOctet;
      std::int64_t input = row * params.input_strides[1], patch = column * params.patch_strides[1];
      OuterWindows windows{{0, params.guards}, {0, params.guards}};
      std::int32_t rest = index + own;
#pragma unroll 1
      for (int axis = kTileAxes - 1; axis >= 0; --axis) {
        const OuterAxis& along = params.axes[axis];
        const int stride = axis == 0 ? 0 : 1 + axis;
        const std::int32_t outer = along.by_tiles.quotient(rest);
        const std::int64_t q = std::int64_t(along.by_tiles.remainder(rest, outer)) * along.tile;
        const std::int64_t first =
            q * along.step + (axis > 0 ? warp.template reread<std::int32_t>(block + (axis - 1) * 4) : 0);
        rest = outer;
        input += q * params.input_strides[stride];
        patch += first * params.patch_strides[stride];
        const std::int32_t count = along.input - q < along.tile ? std::int32_t(along.input - q) : along.tile;
        const std::int64_t left = along.output - first;
        const std::int32_t end = left < along.extent ? std::int32_t(left) : along.extent;
        const std::int32_t low = first < 0 ? (first > -along.extent ? std::int32_t(-first) : along.extent) : 0;
        const bool any = low < end;
        windows.of_input.high |= std::uint32_t(count - 1) << along.shift;
        windows.of_patch.low |= std::uint32_t(any ? low : along.extent) << along.shift;
        windows.of_patch.high |= std::uint32_t(any ? end - 1 : 0) << along.shift;
      }
      warp.template store<OuterOrigin>(params.shared.origins + own * std::int32_t(sizeof(OuterOrigin)),
                                       {input * kBytes, patch * kBytes});
      warp.template store<OuterWindows>(params.shared.windows + own * std::int32_t(sizeof(OuterWindows)), windows);
    });
  }

  // Once for all boxes.
  template <class Warp>
  CONVT_HOST_DEVICE static void tabulate(Warp& warp, const OuterParams& params) {
    const std::int32_t inputs = params.input_entries, entries = inputs + params.patch_entries;
    warp.lanes([&](int lane) {
#pragma unroll 1
      for (std::int32_t at = warp.thread(lane); at < entries; at += kThreads) {
        const bool of_patch = at >= inputs;
        std::int32_t rest = of_patch ? (at - inputs) * params.patch_piece : at * params.input_piece;
        OuterEntry entry{0, 0};
#pragma unroll 1
        for (int axis = kTileAxes - 1; axis >= 0; --axis) {
          const OuterAxis& along = params.axes[axis];
          const FastDivisor by = of_patch ? along.by_extent : along.by_tile;
          const std::int32_t outer = by.quotient(rest), slot = by.remainder(rest, outer);
          const int stride = axis == 0 ? 0 : 1 + axis;
          if (of_patch) {
            const std::int32_t phase = along.by_width.quotient(slot);
            const std::int32_t pixel = along.by_width.remainder(slot, phase) * along.phases + phase;
            entry.place |= std::uint32_t(pixel) << along.shift;
            entry.offset += pixel * std::int32_t(params.patch_strides[stride]);
          } else {
            entry.place |= std::uint32_t(slot) << along.shift;
            entry.offset += slot * std::int32_t(params.input_strides[stride]);
          }
          rest = outer;
        }
        if (rest != 0) entry = {params.nowhere, 0};
        warp.template store<OuterEntry>(params.shared.entries + at * std::int32_t(sizeof(OuterEntry)), entry);
      }
    });
  }

  // Starts the copies of a box, of which `told` is the place among those found. What has to turn is loaded here, and stored by `settle`.
  template <class Warp, class State>
  CONVT_HOST_DEVICE static void fetch(Warp& warp, State& state, const OuterParams& params, std::int32_t told,
                                      const Left& left, std::int32_t stage) {
    const auto origin =
        warp.template load<OuterOrigin>(params.shared.origins + told * std::int32_t(sizeof(OuterOrigin)));
    const auto windows =
        warp.template load<OuterWindows>(params.shared.windows + told * std::int32_t(sizeof(OuterWindows)));
    const Box box{static_cast<const char*>(params.input) + origin.input,
                  static_cast<const char*>(params.patch) + origin.patch, windows.of_input, windows.of_patch};
    const std::int32_t input = params.shared.input + stage * kConfig.input_stage_bytes(kOperand);
    const std::int32_t patch = params.shared.patch + stage * params.shared.patch_stage_bytes;
    if constexpr (kAlongChannels) {
      if (params.patch_by_registers) {
        load_elements(warp, params, {box.patch, box.of_patch, kPixels, params.patch_entries, left.patch},
                      params.block_octets * kOctet, [&](std::int32_t pixel, std::int32_t channel, std::uint32_t word) {
                        put(warp,
                            patch + channel / kOctet * params.octet_bytes + channel % kOctet * params.channel_bytes +
                                pixel * params.pixel_bytes,
                            word);
                      });
      } else {
        copy_vectors(
            warp, params, {box.patch, box.of_patch, kPixels, params.patch_entries, left.patch},
            params.block_octets * (kOctet / kVector), params.lanes_log2,
            [&](std::int32_t pixel, std::int32_t vector) { return patch + vector * 16 + pixel * params.pixel_bytes; });
      }
      const Pixels pixels{box.input, box.of_input, 0, kPixels, left.input};
      if (params.input_by_registers) {
        load_elements(warp, params, pixels, kConfig.channels,
                      [&](std::int32_t pixel, std::int32_t channel, std::uint32_t word) {
                        constexpr bool along = OuterConfig::along_reduction(kOperand, kInner);
                        const std::int32_t line = along ? channel : pixel, other = along ? pixel : channel;
                        put(warp, vector_at(input, line, other / kVector) + other % kVector * kBytes,
                            is_float32(kOperand) ? nearest_tf32_operand(word) : word);
                      });
      } else if constexpr (kTurns) {
        load_turning(warp, state, params, box, left.input);
      } else {
        constexpr int count = kConfig.channels / kVector;
        copy_vectors(warp, params, pixels, count, 3,
                     [&](std::int32_t pixel, std::int32_t vector) { return vector_at(input, pixel, vector); });
      }
    } else {
      with_piece(params.input_piece, [&](auto piece) {
        constexpr int bytes = decltype(piece)::value;
        using Share = InputShare<bytes>;
        const std::int64_t channel_bytes = params.input_strides[1] * kBytes;
        warp.lanes([&](int lane) {
          const std::int32_t own = Share::entry(warp.thread(lane)), channel = Share::channel(warp.thread(lane));
          const Found found = find(warp, params, box.of_input, own);
          copy_channels<bytes>(
              warp, lane, [&](std::int32_t line) { return piece_at<bytes>(input, line, own); },
              box.input + found.bytes + channel * channel_bytes, channel_bytes, channel, Share::kStep, kConfig.channels,
              found.there ? left.input : 0);
        });
      });
      with_piece(params.patch_piece, [&](auto piece) {
        copy_rows<decltype(piece)::value>(warp, params, box, left.patch, params.input_entries, patch);
      });
    }
  }

  // When the copies of a box have come: its input rounded to TF32. Those who multiply round what they have in registers.
  template <class Warp, class State>
  CONVT_HOST_DEVICE static void settle(Warp& warp, State& state, const OuterParams& params, std::int32_t stage) {
    static_assert(is_float32(kOperand));
    if (kTurns && params.input_by_registers) return;
    const std::int32_t input = params.shared.input + stage * kConfig.input_stage_bytes(kOperand);
    if constexpr (kTurns) {
      store_turned(warp, state, input);
    } else {
      with_piece(params.input_piece, [&](auto piece) {
        constexpr int bytes = decltype(piece)::value;
        using Share = InputShare<bytes>;
        warp.lanes([&](int lane) {
          const std::int32_t piece_of = Share::entry(warp.thread(lane)), first = Share::channel(warp.thread(lane));
#pragma unroll 4
          for (int at = 0; at < kConfig.channels / Share::kStep; ++at) {
            const std::int32_t own = piece_at<bytes>(input, first + at * Share::kStep, piece_of);
            auto words = warp.template load<Words<bytes>>(own);
#pragma unroll
            for (std::uint32_t& word : words.word) word = nearest_tf32_operand(word);
            warp.store(own, words);
          }
        });
      });
    }
  }

  // Of what turns, under way in registers.
  template <int kLanes>
  struct State {
    struct Unit {
      Vector16 pixel[4];
    };
    Lanes<Unit, kLanes> unit[kTurns ? kUnits : 1];
  };

 private:
  // What a thread copies of the input where pixels are innermost: a piece of every so many channels.
  template <int kPiece>
  struct InputShare {
    static constexpr int kEntries = kPixels * kBytes / kPiece, kStep = kThreads / kEntries;
    static_assert(kThreads % kEntries == 0 && kConfig.channels % kStep == 0);
    CONVT_HOST_DEVICE static std::int32_t entry(std::int32_t thread) { return thread % kEntries; }
    CONVT_HOST_DEVICE static std::int32_t channel(std::int32_t thread) { return thread / kEntries; }
  };

  struct Box {
    const char* input;
    const char* patch;
    OuterWindow of_input, of_patch;
  };
  // A copy of a box: whether it exists, and bytes from the box's first.
  struct Found {
    bool there;
    std::int64_t bytes;
  };
  template <class Warp>
  CONVT_HOST_DEVICE static Found find(Warp& warp, const OuterParams& params, const OuterWindow& window,
                                      std::int32_t at) {
    const auto entry = warp.template load<OuterEntry>(params.shared.entries + at * std::int32_t(sizeof(OuterEntry)));
    return {is_there(params, window, entry.place), std::int64_t(entry.offset) * kBytes};
  }

  // Some of a box's pixels where channels are innermost, of which `left` exist: entries [first, first + count).
  struct Pixels {
    const char* source;
    OuterWindow window;
    std::int32_t first, count, left;
  };
  // `vectors` of channels of every pixel, some lanes side by side.
  template <class Warp, class TargetOf>
  CONVT_HOST_DEVICE static void copy_vectors(Warp& warp, const OuterParams& params, const Pixels& pixels,
                                             std::int32_t vectors, std::int32_t lanes_log2, TargetOf target_of) {
    warp.lanes([&](int lane) {
      const std::int32_t lanes = 1 << lanes_log2, step = kThreads >> lanes_log2;
      for (std::int32_t at = warp.thread(lane) & (lanes - 1); at < vectors; at += lanes) {
        const bool exists = at * kVector < pixels.left;
#pragma unroll 1
        for (std::int32_t pixel = warp.thread(lane) >> lanes_log2; pixel < pixels.count; pixel += kCopies * step) {
          const char* from[kCopies];
          bool there[kCopies];
#pragma unroll
          for (int copy = 0; copy < kCopies; ++copy) {
            const std::int32_t own = pixel + copy * step;
            const Found found = find(warp, params, pixels.window, pixels.first + (own < pixels.count ? own : 0));
            from[copy] = pixels.source + at * 16 + found.bytes;
            there[copy] = exists && found.there;
          }
#pragma unroll
          for (const char*& own : from) warp.settle(own);
#pragma unroll
          for (int copy = 0; copy < kCopies; ++copy) {
            const std::int32_t own = pixel + copy * step;
            if (own >= pixels.count) continue;
            warp.template copy_later<16>(lane, target_of(own, at), from[copy], there[copy]);
          }
        }
      }
    });
  }
  // Element by element, several on their way at a time. Channels that do not exist stay what they are: so do their sums.
  template <class Warp, class Put>
  CONVT_HOST_DEVICE static void load_elements(Warp& warp, const OuterParams& params, const Pixels& pixels,
                                              std::int32_t channels, Put put_at) {
    if (pixels.left < channels) channels = pixels.left;
    warp.lanes([&](int lane) {
      std::int32_t lanes_log2 = 0;
      while (lanes_log2 < 5 && (1 << lanes_log2) < channels) ++lanes_log2;
      const std::int32_t step = kThreads >> lanes_log2;
      for (std::int32_t channel = warp.thread(lane) & ((1 << lanes_log2) - 1); channel < channels;
           channel += 1 << lanes_log2) {
#pragma unroll 1
        for (std::int32_t pixel = warp.thread(lane) >> lanes_log2; pixel < pixels.count; pixel += kTogether * step) {
          std::uint32_t word[kTogether];
#pragma unroll
          for (int at = 0; at < kTogether; ++at) {
            const std::int32_t own = pixel + at * step;
            const Found found = find(warp, params, pixels.window, pixels.first + (own < pixels.count ? own : 0));
            word[at] = warp.template word_if<kBytes>(found.there && own < pixels.count,
                                                     pixels.source + found.bytes + channel * kBytes);
          }
#pragma unroll
          for (int at = 0; at < kTogether; ++at) {
            if (pixel + at * step < pixels.count) put_at(pixel + at * step, channel, word[at]);
          }
        }
      }
    });
  }
  template <class Warp>
  CONVT_HOST_DEVICE static void put(Warp& warp, std::int32_t target, std::uint32_t word) {
    if constexpr (is_float32(kOperand)) {
      warp.template store<std::uint32_t>(target, word);
    } else {
      warp.template store<std::uint16_t>(target, std::uint16_t(word));
    }
  }

  template <int kPiece>
  struct alignas(kPiece) Words {
    std::uint32_t word[kPiece / 4];
  };

  template <class Visit>
  CONVT_HOST_DEVICE static void with_piece(std::int32_t pixels, Visit visit) {
    const std::int32_t bytes = pixels * kBytes;
    if (bytes == 16) {
      visit(std::integral_constant<int, 16>{});
    } else if (bytes == 8) {
      visit(std::integral_constant<int, 8>{});
    } else if (is_float32(kOperand) || bytes == 4) {
      visit(std::integral_constant<int, 4>{});
    } else if constexpr (!is_float32(kOperand)) {
      visit(std::integral_constant<int, 2>{});
    }
  }

  // The same pixels of every so many channels, of which `left` exist.
  template <int kPiece, class Warp, class TargetOf>
  CONVT_HOST_DEVICE static void copy_channels(Warp& warp, int lane, TargetOf target_of, const char* source,
                                              std::int64_t channel_bytes, std::int32_t channel, std::int32_t step,
                                              std::int32_t channels, std::int32_t left) {
    constexpr int together = kPiece < 4 ? kTogether : kCopies;
#pragma unroll 1
    for (; channel < channels; channel += together * step) {
      if constexpr (kPiece < 4) {
        std::uint32_t half[together];
        const char* from = source;
#pragma unroll
        for (int at = 0; at < together; ++at, from += step * channel_bytes) {
          half[at] = warp.template word_if<kPiece>(channel + at * step < left, from);
        }
#pragma unroll
        for (int at = 0; at < together; ++at) {
          if (channel + at * step < channels) {
            warp.template store<std::uint16_t>(target_of(channel + at * step), std::uint16_t(half[at]));
          }
        }
      } else {
        const char* from[together];
#pragma unroll
        for (int at = 0; at < together; ++at) from[at] = source + at * step * channel_bytes;
#pragma unroll
        for (const char*& own : from) warp.settle(own);
#pragma unroll
        for (int at = 0; at < together; ++at) {
          if (channel + at * step < channels) {
            warp.template copy_later<kPiece>(lane, target_of(channel + at * step), from[at],
                                             channel + at * step < left);
          }
        }
      }
      source += together * step * channel_bytes;
    }
  }

  // In the input at byte offset `input`: a vector of a line, and a piece of a channel's pixels.
  CONVT_HOST_DEVICE static std::int32_t vector_at(std::int32_t input, std::int32_t line, std::int32_t vector) {
    return input + kConfig.input_offset(kOperand, kInner, line, vector);
  }
  template <int kPiece>
  CONVT_HOST_DEVICE static std::int32_t piece_at(std::int32_t input, std::int32_t channel, std::int32_t piece) {
    return vector_at(input, channel, piece * kPiece / 16) + piece * kPiece % 16;
  }

  template <int kPiece, class Warp>
  CONVT_HOST_DEVICE static void copy_rows(Warp& warp, const OuterParams& params, const Box& box, std::int32_t left,
                                          std::int32_t first, std::int32_t patch) {
    const std::int32_t lanes = 1 << params.lanes_log2;
    const std::int64_t channel_bytes = params.patch_strides[1] * kBytes;
    warp.lanes([&](int lane) {
      const std::int32_t channel = warp.thread(lane) >> params.lanes_log2;
      for (std::int32_t at = warp.thread(lane) & (lanes - 1); at < params.patch_entries; at += lanes) {
        const Found found = find(warp, params, box.of_patch, first + at);
        copy_channels<kPiece>(
            warp, lane, [&](std::int32_t to) { return patch + at * kPiece + to * params.channel_bytes; },
            box.patch + found.bytes + channel * channel_bytes, channel_bytes, channel, kThreads >> params.lanes_log2,
            params.block_octets * kOctet, found.there ? left : 0);
      }
    });
  }

  // Four pixels of four channels: two such units side by side, so that whole sectors are asked for, then along pixels.
  struct Place {
    std::int32_t channel, pixel;
  };
  CONVT_HOST_DEVICE static Place place(std::int32_t thread, int unit) {
    constexpr int across = kPixels / 4;
    const std::int32_t at = thread + unit * kThreads;
    return {(at / (2 * across) * 2 + at % 2) * 4, at / 2 % across * 4};
  }
  template <class Warp, class State>
  CONVT_HOST_DEVICE static void load_turning(Warp& warp, State& state, const OuterParams& params, const Box& box,
                                             std::int32_t left) {
    warp.lanes([&](int lane) {
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        const Place own = place(warp.thread(lane), unit);
#pragma unroll
        for (int pixel = 0; pixel < 4; ++pixel) {
          const Found found = find(warp, params, box.of_input, own.pixel + pixel);
          state.unit[unit][lane].pixel[pixel] =
              warp.vector_if(found.there && own.channel < left, box.input + found.bytes + own.channel * kBytes);
        }
      }
    });
  }
  template <class Warp, class State>
  CONVT_HOST_DEVICE static void store_turned(Warp& warp, State& state, std::int32_t input) {
    warp.lanes([&](int lane) {
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        const Place own = place(warp.thread(lane), unit);
#pragma unroll
        for (int channel = 0; channel < 4; ++channel) {
          Vector16 turned;
#pragma unroll
          for (int pixel = 0; pixel < 4; ++pixel) {
            turned.word[pixel] = nearest_tf32_operand(state.unit[unit][lane].pixel[pixel].word[channel]);
          }
          warp.template store<Vector16>(vector_at(input, own.channel + channel, own.pixel / 4), turned);
        }
      }
    });
  }
};

}  // namespace convt
