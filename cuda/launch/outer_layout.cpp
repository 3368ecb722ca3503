#include "launch/outer_layout.hpp"

#include <algorithm>
#include <array>

namespace convt {
namespace {

// Whether elements go through registers, as the narrowest copy past them is wider.
bool by_registers(const OuterWork& work, const Strides& strides, std::int64_t channels, std::int32_t piece) {
  return work.inner == Innermost::channels ? !whole_vectors(strides, channels, work.vector())
                                           : piece * work.bytes() < 4;
}

// Threads side by side along one of two extents, log2, the others along the other: so many that a thread has the least to do. Copies go
// four at a time across the first extent; where it is that of a table's entries, each is looked up before.
std::int32_t lanes_of(std::int64_t along, std::int64_t across, bool entries_along, int least, int most, int threads) {
  const auto cost = [&](int log2) {
    const std::int64_t own = ceil_div(along, std::int64_t(1) << log2),
                       batches = ceil_div(ceil_div(across, std::int64_t(threads >> log2)), 4);
    return entries_along ? own * (3 + 4 * batches) : own * (1 + 6 * batches);
  };
  std::int32_t best = least;
  for (int log2 = least; log2 <= most; ++log2) {
    if (cost(log2) <= cost(best)) best = log2;
  }
  return best;
}

// Bytes from a patch's first pixel to that of each of the first positions of a box.
using Places = std::array<std::int64_t, 8>;
Places places_of(const OuterWork& work, const OuterCandidate& choice) {
  Places places{};
  for (int position = 0; position < int(places.size()); ++position) {
    std::int64_t rest = position, pitch = choice.pixel_bytes;
    for (int axis = kTileAxes - 1; axis >= 0; --axis) {
      const std::int64_t step = axis == 0 ? 1 : work.problem().axes[axis - 1].stride;
      places[position] += rest % choice.box.tile[axis] * (axis == 3 ? step / choice.phases : step) * pitch;
      rest /= choice.box.tile[axis];
      pitch *= choice.extent[axis];
    }
  }
  return places;
}

// Of rows of 16 bytes that an ldmatrix reads, the most that meet in a bank.
int conflicts_of_rows(const Places& places) {
  int rows[8] = {}, most = 1;
  for (const std::int64_t place : places) most = std::max(most, ++rows[place / 16 % 8]);
  return most;
}

// Of lanes that read a fragment element by element, octets of channels by four positions, the most that meet in a bank for another word.
int conflicts_of_words(const OuterWork& work, const Places& places, std::int64_t channel_bytes) {
  int words[32] = {}, most = 1;
  for (int channel = 0; channel < kOctet; ++channel) {
    std::int64_t seen[4];
    for (int lane = 0; lane < 4; ++lane) {
      seen[lane] = (places[is_float32(work.operand) ? lane : 2 * lane] + channel * channel_bytes) / 4;
      if (std::find(seen, seen + lane, seen[lane]) == seen + lane) most = std::max(most, ++words[seen[lane] % 32]);
    }
  }
  return most;
}

}  // namespace

std::int32_t widest_piece(const OuterWork& work, const Strides& strides, std::int64_t row) {
  if (work.inner == Innermost::channels || strides[4] != 1) return 1;
  std::int64_t places = work.vector() | row;
  for (int axis = 0; axis < 4; ++axis) places |= strides[axis];
  return std::int32_t(places & -places);
}

bool input_by_registers(const OuterWork& work, const OuterCandidate& choice) {
  return by_registers(work, work.request.input, work.problem().group_in_channels(), choice.input_piece);
}

bool patch_by_registers(const OuterWork& work, const OuterCandidate& choice) {
  return by_registers(work, work.request.output, work.problem().group_out_channels(), choice.patch_piece);
}

double input_width(const OuterWork& work, const OuterCandidate& choice) {
  return work.inner == Innermost::pixels ? choice.input_piece : input_by_registers(work, choice) ? 1 : work.vector();
}

double patch_width(const OuterWork& work, const OuterCandidate& choice) {
  return work.inner == Innermost::pixels ? choice.patch_piece : patch_by_registers(work, choice) ? 1 : work.vector();
}

std::int64_t low_of(const OuterWork& work, const OuterCandidate& choice, int axis, std::int64_t first_tap) {
  const Axis& along = work.problem().axes[axis];
  const std::int64_t low = along.dilation * first_tap - along.padding;
  return axis == 2 ? low - floor_divmod(low, choice.patch_piece).remainder : low;
}

void measure_patch(const OuterWork& work, OuterCandidate& choice) {
  choice.extent[0] = choice.box.tile[0];
  for (int axis = 0; axis < kAxes; ++axis) {
    const Axis& along = work.problem().axes[axis];
    std::int64_t& extent = choice.extent[1 + axis];
    extent = 0;
    for (std::int64_t first = 0; first < along.filter; first += choice.taps[axis]) {
      const std::int64_t last = std::min(first + choice.taps[axis], along.filter) - 1;
      const std::int64_t high = along.dilation * last - along.padding + along.stride * (choice.box.tile[1 + axis] - 1);
      extent = std::max(extent, high - low_of(work, choice, axis, first) + 1);
    }
    if (axis == 2) extent = round_up(extent, std::max(choice.patch_piece, choice.phases));
  }
}

OuterShared shared_of(const OuterConfig& config, Operand operand, std::int32_t patch_stage_bytes, std::int32_t stages,
                      std::int32_t entries) {
  OuterShared shared{};
  shared.patch = stages * config.input_stage_bytes(operand);
  shared.patch_stage_bytes = patch_stage_bytes;
  shared.positions = shared.patch + stages * patch_stage_bytes;
  shared.entries = shared.positions + 4 * config.pixels(operand);
  shared.origins = std::int32_t(round_up(shared.entries + entries * std::int64_t(sizeof(OuterEntry)), 16));
  shared.windows = shared.origins + kToldBoxes * std::int32_t(sizeof(OuterOrigin));
  shared.barriers = shared.windows + kToldBoxes * std::int32_t(sizeof(OuterWindows));
  shared.bytes = shared.barriers + 2 * kMostBoxes * 8;
  return shared;
}

bool lay_out(const OuterWork& work, OuterCandidate& choice) {
  const std::int64_t pixels = choice.pixels(), channels = choice.octets * kOctet;
  if (pixels * work.bytes() > (1 << 20)) return false;
  const int threads = work.config.loaders();
  if (work.inner == Innermost::pixels) {
    // As many words from one channel to the next as make the fewest lanes meet in a bank, copies being aligned.
    const std::int64_t step = std::max(choice.patch_piece * work.bytes(), 4);
    choice.pixel_bytes = work.bytes();
    choice.conflicts = 32;
    const Places places = places_of(work, choice);
    for (std::int64_t pitch = round_up(pixels * work.bytes(), step), end = pitch + 64; pitch < end; pitch += step) {
      const int conflicts = conflicts_of_words(work, places, pitch);
      if (conflicts >= choice.conflicts) continue;
      choice.conflicts = conflicts;
      choice.channel_bytes = std::int32_t(pitch);
      if (conflicts == 1) break;
    }
    choice.octet_bytes = kOctet * choice.channel_bytes;
    choice.lanes_log2 = lanes_of(pixels / choice.patch_piece, channels, true, 3, 7, threads);
  } else if (is_float32(work.operand)) {
    choice.pixel_bytes = std::int32_t(4 * (channels + (40 - channels % 32) % 32));
    choice.channel_bytes = 4;
    choice.octet_bytes = 4 * kOctet;
  } else {
    choice.pixel_bytes = std::int32_t(16 * (choice.octets | 1));
    choice.channel_bytes = 2;
    choice.octet_bytes = 16;
  }
  if (work.inner == Innermost::channels) {
    choice.lanes_log2 = lanes_of(channels / work.vector(), pixels, false, 1, 3, threads);
    const Places places = places_of(work, choice);
    choice.conflicts =
        is_float32(work.operand) ? conflicts_of_words(work, places, choice.channel_bytes) : conflicts_of_rows(places);
  }
  const std::int64_t patch = round_up(
      work.inner == Innermost::channels ? pixels * choice.pixel_bytes : choice.octets * choice.octet_bytes, 16);
  const auto fits = [&](std::int32_t stages, std::int32_t input_piece, std::int32_t patch_piece) {
    const std::int64_t entries = work.config.pixels(work.operand) / input_piece + pixels / patch_piece;
    choice.shared = shared_of(work.config, work.operand, std::int32_t(patch), stages, std::int32_t(entries));
    return choice.shared.bytes <= shared_capacity(work.device, 1);
  };
  if (!fits(2, 1, 1)) return false;   // for tensors that are less aligned than torch's
  choice.stages = kMostBoxes;
  while (!fits(choice.stages, choice.input_piece, choice.patch_piece)) --choice.stages;
  return true;
}

}  // namespace convt
