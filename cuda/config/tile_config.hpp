#pragma once

#include "geometry/dtype.hpp"

namespace convt {

// How the tensor cores form a product: what the operands are, and how often they are multiplied.
//   tf32: float32 rounded to nearest TF32, once.   ieee: float32 split into two TF32 halves, three products.
enum class Operand : int { tf32, ieee, bfloat16, float16 };
inline constexpr int kOperands = 4;

constexpr const char* name_of(Operand operand) {
  constexpr const char* names[] = {"tf32", "ieee", "bfloat16", "float16"};
  return names[int(operand)];
}

CONVT_HOST_DEVICE constexpr bool is_float32(Operand operand) {
  return operand == Operand::tf32 || operand == Operand::ieee;
}
CONVT_HOST_DEVICE constexpr int operand_bytes(Operand operand) { return is_float32(operand) ? 4 : 2; }
// Channels in 16 bytes of one pixel.
CONVT_HOST_DEVICE constexpr int operand_vector(Operand operand) { return 16 / operand_bytes(operand); }
// Copies of the packed filter: high and low halves for ieee.
CONVT_HOST_DEVICE constexpr int filter_copies(Operand operand) { return operand == Operand::ieee ? 2 : 1; }

inline constexpr int kMmaRows = 16;       // rows of an mma.sync
inline constexpr int kMmaPixels = 8;      // columns of an mma.sync
inline constexpr int kMmaPlanes = 2;      // 16-byte channel vectors that an mma.sync reduces over
inline constexpr int kPatchStages = 2;
inline constexpr int kMostPatchStages = 4;   // where patches are copied, if there is room
inline constexpr int kRowStages = 2;         // of a vector of channels each, where rows are turned; or twice as many
inline constexpr int kGroupRows = 64;     // of a wgmma: virtual channels
inline constexpr int kGroupPixels = 128;  // columns of a wgmma: a run of neighbouring pixels of a patch
// Where a warp of a warpgroup turns its sums before it stores them: 16 rows of 128 bytes and these words.
inline constexpr int kExitPadding = 8;
inline constexpr int kExitBytesOfRow = 128;
inline constexpr int kExitBytes = kMmaRows * (kExitBytesOfRow + 4 * kExitPadding);
// Slices of every warp, where others store them: so many at least, and at most if there is room.
inline constexpr int kSliceStages = 2;
inline constexpr int kMostSliceStages = 4;

// What multiplies: warps by mma.sync, each its part of the tile; or, on Hopper, warpgroups by wgmma, with as many that load.
enum class Engine : int { warps, warpgroups };

// How warpgroups' patches come to shared memory.
//   gathered: through registers of those who load, channel by channel or 16 bytes of them; planes of 16 bytes a pixel.
//   boxes: by tensor copies that a single thread asks for; a pixel's channels, of 16 bits and innermost in memory, are a line.
//   turned: the same of an input that was turned to that, and rounded, by a launch before.
//   rows: by tensor copies of rows of pixels, channel by channel, which warps turn to lines in shared memory.
enum class WayIn : int { gathered, boxes, turned, rows };

constexpr const char* name_of(WayIn way) {
  constexpr const char* names[] = {"gathered", "boxes", "turned", "rows"};
  return names[int(way)];
}
CONVT_HOST_DEVICE constexpr bool in_lines(WayIn way) { return way != WayIn::gathered; }

// One compiled variant of the implicit GEMM. A tile is `rows` virtual channels by `pixels` q positions.
struct TileConfig {
  int rows;
  int pixels;
  int warps_m;          // warps along rows
  int warps_n;          // warps along pixels
  int planes;           // 16-byte channel vectors per chunk of the reduction
  int filter_stages;    // depth of the filter pipeline
  int blocks;           // thread blocks per multiprocessor that registers and shared memory must leave room for
  Engine engine = Engine::warps;

  // The products of ieee take registers that a third block has not to spare.
  CONVT_HOST_DEVICE constexpr int blocks_of(Operand operand) const {
    return operand == Operand::ieee && blocks == 3 ? 2 : blocks;
  }
  // Nor has the longer loop of 8 planes any for a loader that sorts phases: 64x256p8w1x4 and 128x128p8w2x2 spilled. No plan
  // chose them for ieee on an H200; by the model's word 64x256p4w1x4 is at most 1.3 % behind.
  // A warpgroup's products add up in the tensor cores, which truncate: no place for ieee.
  CONVT_HOST_DEVICE constexpr bool has(Operand operand) const {
    return operand != Operand::ieee || (planes < 8 && !grouped());
  }
  CONVT_HOST_DEVICE constexpr bool has(Operand operand, WayIn way) const {
    return has(operand) && (!in_lines(way) || grouped());
  }
  CONVT_HOST_DEVICE constexpr bool grouped() const { return engine == Engine::warpgroups; }
  CONVT_HOST_DEVICE constexpr int warps() const { return warps_m * warps_n; }
  CONVT_HOST_DEVICE constexpr int threads() const { return 32 * warps(); }   // that multiply
  CONVT_HOST_DEVICE constexpr int groups() const { return warps() / 4; }
  // Threads that load the patch. Warps do both; beside warpgroups are as many others, a warp of which fetches the filter.
  CONVT_HOST_DEVICE constexpr int loaders() const { return grouped() ? threads() - 32 : threads(); }
  CONVT_HOST_DEVICE constexpr int block_threads(WayIn way) const {
    return threads() + (!grouped() ? 0 : in_lines(way) ? 128 * (blocks == 1 ? 3 : 1) : threads());
  }
  // Warps that store the sums of others, which need not wait for that: a thread block that has a multiprocessor to itself has room.
  CONVT_HOST_DEVICE constexpr int storers(WayIn way) const { return grouped() && in_lines(way) && blocks == 1 ? 4 : 0; }
  CONVT_HOST_DEVICE constexpr int slice_stages(WayIn way) const { return storers(way) > 0 ? kSliceStages : 1; }
  // Of a thread beside warpgroups, and of one that multiplies: of those a thread block is launched with, in eights, what the others leave.
  CONVT_HOST_DEVICE static constexpr int loader_registers(WayIn way) { return in_lines(way) ? 48 : 88; }
  CONVT_HOST_DEVICE constexpr int consumer_registers(WayIn way) const {
    const int launched = 65536 / blocks / block_threads(way) / 8 * 8 * block_threads(way);
    const int beside = (block_threads(way) - threads()) * loader_registers(way);
    return (launched - beside) / threads() / 8 * 8;
  }
  // Bytes from a patch's pixel to the next.
  CONVT_HOST_DEVICE constexpr int pixel_bytes(WayIn way) const { return in_lines(way) ? planes * 16 : 16; }
  // Of a kernel of warpgroups: filter stages full and empty; patches full, empty and ready, rows empty; slices of every warpgroup full
  // and empty; tile left.
  CONVT_HOST_DEVICE constexpr int barriers() const {
    return 2 * filter_stages + 4 * kMostPatchStages + 2 * groups() * kMostSliceStages + 1;
  }
  // Bytes that outlive a tile, or are read beyond the last patch by columns that are dropped.
  CONVT_HOST_DEVICE constexpr int lasting_bytes(WayIn way) const {
    const int lasting = 16 + 8 * pixels + slice_stages(way) * warps() * kExitBytes + 8 * barriers();
    const int gathered = 12 * pixels, lines = kGroupPixels * pixel_bytes(WayIn::boxes);
    const int beyond = gathered > lines ? gathered : lines;
    return !grouped() ? 0 : lasting > beyond ? lasting : beyond;
  }
  CONVT_HOST_DEVICE constexpr int warp_rows() const { return rows / warps_m; }
  CONVT_HOST_DEVICE constexpr int warp_pixels() const { return pixels / warps_n; }
  CONVT_HOST_DEVICE constexpr int row_tiles() const { return rows / kMmaRows; }
  // Bytes of the filter rows of one shift and one chunk, and behind them 16 that announce the next step.
  CONVT_HOST_DEVICE constexpr int slab_rows_bytes(Operand operand) const {
    return rows * planes * 16 * filter_copies(operand);
  }
  CONVT_HOST_DEVICE constexpr int slab_bytes(Operand operand) const { return slab_rows_bytes(operand) + 16; }
  // The epilogue's staging: a float per accumulator, every 32 pixels pushed one bank further, rows 8 banks apart.
  CONVT_HOST_DEVICE constexpr int staging_pitch() const {
    const int used = pixels + pixels / 32;
    return used + (8 - used % 32 + 32) % 32;
  }
  // Behind it a bias per row; the phases' rows follow.
  CONVT_HOST_DEVICE constexpr int staging_bytes() const { return (rows * staging_pitch() + rows) * 4; }
  constexpr bool operator==(const TileConfig&) const = default;
};

}  // namespace convt
