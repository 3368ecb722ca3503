#pragma once

#include "collective/filter_loader.hpp"
#include "collective/patch_loader.hpp"
#include "collective/patch_rounding.hpp"
#include "collective/patch_turning.hpp"
#include "collective/plane_products.hpp"
#include "collective/slice_exchange.hpp"

namespace convt {

// The implicit GEMM for Hopper. Warpgroups multiply patches as they lie in shared memory; others load them, or a thread asks for tensor
// copies, and a warp feeds the filter. A thread block takes one tile after the other, its loaders ahead of those who multiply. Positions
// of a tile are consecutive pixels of the patch, the halo's among them: those columns are computed and dropped.
template <TileConfig kConfig, Operand kOperand, WayIn kWayIn>
struct WarpgroupGemm {
  using Params = GemmParams;
  using Filter = FilterLoader<kConfig, kOperand>;
  using Patch = PatchLoader<kConfig, kOperand>;
  using Sums = Mma<kConfig, kOperand>;
  using Products = PlaneProducts<kConfig, kOperand, kWayIn>;
  using Output = Epilogue<kConfig, kOperand>;
  using Exits = ExitTable<kConfig, kOperand>;
  using Slices = SliceExchange<WarpgroupGemm>;
  static constexpr TileConfig config = kConfig;
  static constexpr Operand operand = kOperand;
  static constexpr int kStages = kConfig.filter_stages;
  static constexpr int kThreads = kConfig.block_threads(kWayIn);
  // That load and feed. Beside boxes others work: they turn rows to lines; of float32 they round patches whose lines are copied as they
  // lie, where tensor cores would truncate.
  static constexpr int kLoading = kWayIn == WayIn::boxes ? 64 : kConfig.threads();
  static constexpr int kStorers = kConfig.storers(kWayIn);   // warps that store what others have multiplied
  static constexpr int kWorking = kThreads - kConfig.threads() - kLoading - 32 * kStorers, kWorkers = kWorking / 32;
  using Rounding = PatchRounding<kLoading, kWorking>;
  // Teams take turns at the planes of a patch, and so at the stages of rows: who waits for a stage has waited for all its rounds.
  static constexpr int kTeams = 2, kTeam = kWorkers > 0 ? kWorkers / kTeams : 1;
  static_assert(kConfig.planes % kTeams == 0 && kRowStages % kTeams == 0 && 2 * kRowStages <= kMostPatchStages);
  using Turning = PatchTurning<kOperand, kConfig.pixel_bytes(kWayIn), kTeam>;
  static constexpr int kBlocks = kConfig.blocks_of(kOperand);
  static constexpr int kPixel = kConfig.pixel_bytes(kWayIn);
  static_assert(kConfig.warp_rows() == kMmaRows && kConfig.warp_pixels() == 2 * kGroupPixels &&
                    kConfig.warps_m % 4 == 0,
                "a warpgroup keeps the sums of 64 rows and 256 pixels");

  // Barriers, in this order behind params.shared.barriers.
  static constexpr int kFilterFull = 0, kFilterEmpty = kStages, kPatchFull = 2 * kStages,
                       kPatchEmpty = kPatchFull + kMostPatchStages, kPatchReady = kPatchEmpty + kMostPatchStages,
                       kRowsEmpty = kPatchReady + kMostPatchStages, kSliceFull = kRowsEmpty + kMostPatchStages,
                       kSliceEmpty = kSliceFull + kMostSliceStages * kConfig.groups(),
                       kLeft = kSliceEmpty + kMostSliceStages * kConfig.groups();
  static_assert(kLeft + 1 == kConfig.barriers());
  CONVT_HOST_DEVICE static std::int32_t barrier(const GemmParams& params, int first, std::int32_t at) {
    return params.shared.barriers + (first + at) * 8;
  }
  CONVT_HOST_DEVICE static int arrivals(int at) {
    if (at < kFilterEmpty) return 1;
    if (at >= kPatchFull && at < kPatchEmpty) return kWayIn == WayIn::boxes ? 1 : kConfig.loaders();
    if (at >= kPatchReady && at < kRowsEmpty) return kWorkers;
    if (at >= kRowsEmpty && at < kSliceFull) return kTeam;
    if (at >= kSliceFull && at < kLeft) return 4;   // a warpgroup's warps, and who stores what each has
    return kConfig.warps();
  }

  // A place in a ring of stages: the stage, and the parity of its round.
  template <int kCount>
  struct Ring {
    std::int32_t stage = 0;
    std::uint32_t parity = 0;
    CONVT_HOST_DEVICE void next(std::int32_t count = kCount) {
      if (++stage == count) {
        stage = 0;
        parity ^= 1;
      }
    }
  };

  // Of patches: as many as there is room for, where that costs no loader a register.
  static constexpr int kPatches = kWayIn == WayIn::boxes ? kMostPatchStages : kPatchStages;
  CONVT_HOST_DEVICE static std::int32_t patch_stages(const GemmParams& params) {
    return kWayIn == WayIn::boxes ? params.shared.patch_stages : kPatchStages;
  }

  struct Work {
    Tile tile;
    PhaseBlock phases;
    std::int32_t patches;
  };
  template <class Group>
  CONVT_HOST_DEVICE static Work work_of(Group& group, const GemmParams& params, std::int32_t index) {
    Work work;
    work.tile = tile_of(params, index);
    work.phases = group.template load<PhaseBlock>(params.tables + work.tile.phase_block * sizeof(PhaseBlock));
    work.patches = work.phases.groups * params.chunks;
    return work;
  }
  template <class Group>
  CONVT_HOST_DEVICE static ShiftGroup shifts_at(Group& group, const GemmParams& params, const Work& work,
                                                std::int32_t index) {
    return group.template load<ShiftGroup>(params.tables + params.table.groups +
                                           (work.phases.first_group + index) * sizeof(ShiftGroup));
  }

  // Pixels from where a copy of rows begins, at a multiple of 16 bytes, to the patch's first.
  CONVT_HOST_DEVICE static std::int32_t early(const GemmParams& params, const Tile& tile, const ShiftGroup& shifts) {
    return std::int32_t(first_of(params, tile, shifts, 2)) & (Patch::kVector - 1);
  }

  // Products stand in no function of their own: calls would serialise them.
  template <class Executor>
  CONVT_HOST_DEVICE CONVT_ALWAYS_INLINE static void run(Executor& block, const GemmParams& params,
                                                        const PatchCopy& copy) {
    block.setup(params.shared.barriers, kConfig.barriers(), [](int at) { return arrivals(at); });
    const auto loading = [&](auto& group) {
      if constexpr (kWayIn == WayIn::boxes) {
        fetch(group, params, copy);
      } else {
        load(group, params);
      }
    };
    const auto working = [&](auto& group) {
      if constexpr (kWayIn == WayIn::boxes) {
        // Those who have nothing to do to patches store as well.
        const bool idle = params.patch_work == PatchWork::none;
        const std::int32_t worker = group.worker();
        if (!idle && worker < kWorkers) {
          if (params.patch_work == PatchWork::turn) turn(group, params);
          if (kOperand == Operand::tf32 && params.patch_work == PatchWork::round) round(group, params);
        } else if (kStorers > 0) {
          constexpr std::int32_t all = kWorkers + kStorers;
          Slices::store(group, params, all - 1 - worker, idle ? all : kStorers);
        }
      }
    };
    block.template roles<kConfig.loader_registers(kWayIn), kConfig.consumer_registers(kWayIn), kWorkers + kStorers>(
        loading, [&](auto& group) { feed(group, params); }, working, [&](auto& group) { consume(group, params); });
  }

  // Patch after patch, where it lies, behind its copy.
  template <class Executor>
  CONVT_HOST_DEVICE static void round(Executor& group, const GemmParams& params) {
    using Warp = typename Executor::Warp;
    struct Nothing {};
    typename Executor::template PerWarp<Nothing> nothing;
    Ring<kPatches> at;
    for (std::int32_t index = group.index(); index < params.tiles; index += group.count()) {
      const Work work = work_of(group, params, index);
      std::int32_t bytes = 0;
#pragma unroll 1
      for (std::int32_t patch = 0, chunk = 0; patch < work.patches; ++patch) {
        if (chunk == 0) bytes = shifts_at(group, params, work, patch / params.chunks).pixels * kPixel;
        const std::int32_t first = params.shared.patch + at.stage * params.shared.patch_stage_bytes;
        group.wait(barrier(params, kPatchFull, at.stage), at.parity);
        group.each_warp(nothing, [=](Warp& warp, Nothing&) {
          Rounding::run(warp, first, bytes);
          warp.publish();
        });
        group.arrive_warps(barrier(params, kPatchReady, at.stage));
        at.next(patch_stages(params));
        if (++chunk == params.chunks) chunk = 0;
      }
    }
  }

  // Patch after patch, a vector of channels at a time, from the stages of rows to that of the patch.
  template <class Executor>
  CONVT_HOST_DEVICE static void turn(Executor& group, const GemmParams& params) {
    using Warp = typename Executor::Warp;
    struct Nothing {};
    typename Executor::template PerWarp<Nothing> nothing;
    const std::int32_t team = group.worker() / kTeam, member = group.worker() % kTeam;
    Ring<kPatches> from, to;
    for (std::int32_t index = group.index(); index < params.tiles; index += group.count()) {
      const Work work = work_of(group, params, index);
      std::int32_t images = 0, pixels = 0;
      FastDivisor by_pixels;
#pragma unroll 1
      for (std::int32_t patch = 0, chunk = 0; patch < work.patches; ++patch) {
        if (chunk == 0) {
          const ShiftGroup shifts = shifts_at(group, params, work, patch / params.chunks);
          images = shifts.extent[0];
          pixels = shifts.pitch[0];
          by_pixels = shifts.by_pitch[0];
        }
        const std::int32_t target = params.shared.patch + to.stage * params.shared.patch_stage_bytes;
        group.wait(barrier(params, kPatchEmpty, to.stage), to.parity ^ 1);
#pragma unroll 1
        for (std::int32_t plane = 0; plane < kConfig.planes; ++plane) {
          if (plane % kTeams == team) {
            const std::int32_t rows = params.shared.rows + from.stage * params.shared.row_stage_bytes;
            group.wait(barrier(params, kPatchFull, from.stage), from.parity);
            group.each_warp(nothing, [=](Warp& warp, Nothing&) {
              Turning::run(warp, member, rows, target + plane * 16, pixels, images, by_pixels);
            });
            group.arrive_warps(barrier(params, kRowsEmpty, from.stage));
          }
          from.next(params.shared.row_stages);
        }
        group.each_warp(nothing, [](Warp& warp, Nothing&) { warp.publish(); });
        group.arrive_warps(barrier(params, kPatchReady, to.stage));
        to.next(patch_stages(params));
        if (++chunk == params.chunks) chunk = 0;
      }
    }
  }

  // Patch after patch, each one copy, or as many of rows as it has vectors of channels.
  template <class Executor>
  CONVT_HOST_DEVICE static void fetch(Executor& group, const GemmParams& params, const PatchCopy& copy) {
    const bool rows = params.patch_work == PatchWork::turn;
    const std::int32_t copies = rows ? kConfig.planes : 1, pixel = rows ? 16 : kPixel;
    const std::int32_t first = rows ? params.shared.rows : params.shared.patch,
                       pitch = rows ? params.shared.row_stage_bytes : params.shared.patch_stage_bytes,
                       stages = rows ? params.shared.row_stages : patch_stages(params),
                       empty = rows ? kRowsEmpty : kPatchEmpty;
    Ring<kPatches> to;
    Ring<1> left;
    for (std::int32_t index = group.index(); index < params.tiles; index += group.count()) {
      const Work work = work_of(group, params, index);
      const std::int32_t image = std::int32_t(work.tile.q[0]) + work.tile.conv_group * copy.group_images;
      std::int32_t pixels[kAxes], bytes = 0;   // the first along D, H and W
#pragma unroll 1
      for (std::int32_t patch = 0, chunk = 0; patch < work.patches; ++patch) {
        if (chunk == 0) {
          const ShiftGroup shifts = shifts_at(group, params, work, patch / params.chunks);
          for (int axis = 0; axis < kAxes; ++axis) {
            pixels[axis] = std::int32_t(first_of(params, work.tile, shifts, axis));
          }
          if (rows) pixels[2] -= early(params, work.tile, shifts);
          bytes = shifts.pixels * pixel;
        }
        std::int32_t channel = work.tile.conv_group * copy.group_channels + chunk * Patch::kChunk;
#pragma unroll 1
        for (std::int32_t part = 0; part < copies; ++part, channel += Patch::kVector) {
          const std::int32_t at[kBoxAxes] = {rows ? pixels[2] : channel, rows ? pixels[1] : pixels[2],
                                             rows ? pixels[0] : pixels[1], rows ? channel : pixels[0], image};
          group.wait(barrier(params, empty, to.stage), to.parity ^ 1);
          group.copy_box(first + to.stage * pitch, copy, at, bytes, barrier(params, kPatchFull, to.stage));
          to.next(stages);
        }
        if (++chunk == params.chunks) chunk = 0;
      }
      await_leaving(group, params, left);
    }
  }

  // Patch after patch, two batches on their way at a time.
  template <class Executor>
  CONVT_HOST_DEVICE static void load(Executor& group, const GemmParams& params) {
    using Warp = typename Executor::Warp;
    struct Batches {
      typename Patch::template State<Executor::kLanes> at[2];
    };
    typename Executor::template PerWarp<Batches> states;
    Ring<kPatches> to;
    Ring<1> left;
    for (std::int32_t index = group.index(); index < params.tiles; index += group.count()) {
      const auto phases =
          group.template read<PhaseBlock>(params.tables + tile_of(params, index).phase_block * sizeof(PhaseBlock));
      ShiftGroup shifts{};
      const char* origin = nullptr;
      for (std::int32_t patch = 0, chunk = 0; patch < phases.groups * params.chunks; ++patch) {
        if (chunk == 0) {
          const Tile tile = tile_of(params, index);   // found anew: kept, it would take the registers of the batches
          shifts = group.template read<ShiftGroup>(params.tables + params.table.groups +
                                                   (phases.first_group + patch / params.chunks) * sizeof(ShiftGroup));
          origin = Patch::origin(params, tile, shifts);
          group.each_warp(states, [=, &params](Warp& warp, Batches&) { Patch::tabulate(warp, params, tile, shifts); });
        }
        const std::int32_t batches = Patch::batches(params, shifts);
        const std::int32_t target = params.shared.patch + to.stage * params.shared.patch_stage_bytes;
        const auto fetch = [&](int at, std::int32_t batch) {
          if (batch >= batches) return;
          group.each_warp(states, [=, &params](Warp& warp, Batches& state) {
            Patch::load(warp, state.at[at], params, shifts, origin, chunk, batch);
          });
        };
        const auto store = [&](int at, std::int32_t batch) {
          if (batch >= batches) return;
          group.each_warp(states, [=, &params](Warp& warp, Batches& state) {
            Patch::store(warp, state.at[at], params, shifts, target, batch);
          });
        };
        fetch(0, 0);
        fetch(1, 1);
        group.wait(barrier(params, kPatchEmpty, to.stage), to.parity ^ 1);
#pragma unroll 1
        for (std::int32_t batch = 0; batch < batches; batch += 2) {
          store(0, batch);
          fetch(0, batch + 2);
          store(1, batch + 1);
          fetch(1, batch + 3);
        }
        group.each_warp(states, [](Warp& warp, Batches&) { warp.publish(); });
        group.arrive_all(barrier(params, kPatchFull, to.stage));
        to.next(patch_stages(params));
        if (++chunk == params.chunks) chunk = 0;
      }
      await_leaving(group, params, left);
    }
  }

  // The filter, slab after slab.
  template <class Executor>
  CONVT_HOST_DEVICE static void feed(Executor& group, const GemmParams& params) {
    Ring<kStages> to;
    Ring<1> left;
    for (std::int32_t index = group.index(); index < params.tiles; index += group.count()) {
      const Work work = work_of(group, params, index);
      const std::int64_t block = std::int64_t(work.tile.conv_group) * params.channel_blocks + work.tile.channel_block;
      const char* slab =
          params.filter + (block * params.steps + work.phases.first_step) * params.chunks * Filter::kSlabBytes;
#pragma unroll 1
      for (std::int32_t steps = work.phases.steps * params.chunks; steps > 0; --steps) {
        group.wait(barrier(params, kFilterEmpty, to.stage), to.parity ^ 1);
        group.copy_bulk(Filter::stage_offset(to.stage), slab, Filter::kSlabBytes,
                        barrier(params, kFilterFull, to.stage));
        slab += Filter::kSlabBytes;
        to.next();
      }
      await_leaving(group, params, left);
    }
  }

  // Sums that leave through shared memory take the place of patches and filter.
  template <class Executor>
  CONVT_HOST_DEVICE static void await_leaving(Executor& group, const GemmParams& params, Ring<1>& left) {
    if (params.way_out != WayOut::staged) return;
    group.wait(barrier(params, kLeft, 0), left.parity);
    left.next();
  }

  // What a warp that multiplies has of a tile.
  template <int kLanes>
  struct Kept {
    typename Sums::template State<kLanes> sums;
    Lanes<float, kLanes> bias[2];
  };

  template <class Executor>
  CONVT_HOST_DEVICE static void consume(Executor& group, const GemmParams& params) {
    using Warp = typename Executor::Warp;
    using State = Kept<Executor::kLanes>;
    if (params.way_out != WayOut::staged) {
      typename Executor::template PerWarp<State> none;
      group.each_warp(none, [&params](Warp& warp, State&) { Exits::clear(warp, params); });
      group.sync_consumers(kTableBarrier);
      group.each_warp(none, [&params](Warp& warp, State&) { Exits::tabulate(warp, params); });
      group.sync_consumers(kTableBarrier);
    }
    Ring<kStages> use;
    Ring<kPatches> from;
    Ring<kMostSliceStages> slices;
    Course course;
#pragma unroll 1
    for (std::int32_t index = group.index(); index < params.tiles; index += group.count()) {
      typename Executor::template PerWarp<State> states;
      const Tile tile = tile_of(params, index);
      const auto find_bias = [&] {
        group.each_warp(states, [=, &params](Warp& warp, State& state) {
          const std::int32_t first_row = warp.index() % kConfig.warps_m * kMmaRows;
          warp.lanes([&](int lane) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              state.bias[i][lane] = exit_bias<kConfig, kOperand>(warp, params, tile, first_row + i * 8 + lane / 4);
            }
          });
        });
      };
      group.each_warp(states, [](Warp& warp, State& state) { Sums::clear(warp, state.sums); });
      // Early, unless its registers are needed for what comes behind the products.
      if (kStorers > 0 && params.way_out != WayOut::staged) find_bias();
      multiply(group, states, params, tile, course, use, from);
      if (kStorers == 0 && params.way_out != WayOut::staged) find_bias();
      if (params.way_out != WayOut::staged) {
        if (kStorers > 0 && params.shared.slice_stages > 1) {
          Slices::hand_over(group, states, params, slices);
        } else {
          const auto phases = group.template load<PhaseBlock>(params.tables + tile.phase_block * sizeof(PhaseBlock));
          group.each_warp(states, [=, &params](Warp& warp, State& state) {
            Slices::by_own_way_out(params, [&](auto exit) {
              write_slices<decltype(exit)>(warp, state.sums, state.bias, params, tile, phases);
            });
          });
        }
        group.finish();
        continue;
      }
      const auto phases = group.template load<PhaseBlock>(params.tables + tile.phase_block * sizeof(PhaseBlock));
      group.sync_consumers(kStagingBarrier);   // the staging takes the pipeline's place
      group.each_warp(
          states, [=, &params](Warp& warp, State& state) { Output::stage(warp, state.sums, params, tile, phases); });
      group.sync_consumers(kOutputBarrier);
      group.each_warp(states, [=, &params](Warp& warp, State&) {
        Output::write(warp, params, tile, phases);
        warp.publish();
      });
      group.arrive_warps(barrier(params, kLeft, 0));
    }
  }

  // A phase block's patches, and the first of its shift groups: kept from tile to tile.
  struct Course {
    std::int32_t phase_block = -1, first_group = 0, groups = 0, offset = 0;
    ShiftGroup shifts{};
  };

  template <class Executor, class States>
  CONVT_HOST_DEVICE static void multiply(Executor& group, States& states, const GemmParams& params, const Tile& tile,
                                         Course& course, Ring<kStages>& use, Ring<kPatches>& from) {
    using Warp = typename Executor::Warp;
    using State = Kept<Executor::kLanes>;
    const auto shifts_of = [&](std::int32_t index) {
      return group.template load<ShiftGroup>(params.tables + params.table.groups +
                                             (course.first_group + index) * sizeof(ShiftGroup));
    };
    // Beside gathered patches registers are short: nothing is kept.
    if (kWayIn == WayIn::gathered || tile.phase_block != course.phase_block || course.groups > 1) {
      const auto phases = group.template load<PhaseBlock>(params.tables + tile.phase_block * sizeof(PhaseBlock));
      course.phase_block = tile.phase_block;
      course.first_group = phases.first_group;
      course.groups = phases.groups;
      if (course.groups > 0) {
        course.shifts = shifts_of(0);
        const char* const first = params.tables + params.table.shifts + course.shifts.first_shift * sizeof(ShiftRecord);
        course.offset = group.template load<ShiftRecord>(first).pixel_offset;
      }
    }
    const std::int32_t patches = course.groups * params.chunks;
    if (patches == 0) return;
    ShiftGroup& shifts = course.shifts;
    std::int32_t offset = course.offset;
    // Of the first stage, the patch's first pixel.
    const auto begin_of = [&](const ShiftGroup& shifts) {
      const bool turned = kWayIn == WayIn::boxes && params.patch_work == PatchWork::turn;
      return params.shared.patch + (turned ? early(params, tile, shifts) * kPixel : 0);
    };
    std::int32_t begin = begin_of(shifts);
    const int ready = kWayIn == WayIn::boxes && params.patch_work != PatchWork::none ? kPatchReady : kPatchFull;
    std::int32_t last_filter = -1, last_patch = -1;   // whose products may be under way
    for (std::int32_t patch = 0, chunk = 0; patch < patches; ++patch) {
      group.wait(barrier(params, ready, from.stage), from.parity);
      const std::int32_t pixels = begin + from.stage * params.shared.patch_stage_bytes;
      const std::int32_t plane_bytes = shifts.pixels * 16;
      const auto each_shift = [&]<int kPlanes>(std::integral_constant<int, kPlanes>) {
#pragma unroll 1
        for (std::int32_t shift = 0; shift < shifts.shifts; ++shift) {
          group.wait(barrier(params, kFilterFull, use.stage), use.parity);
          const std::int32_t filter = Filter::stage_offset(use.stage), first = pixels + offset * kPixel;
          // Asked for before the products, whose reads of shared memory it would wait for.
          const std::int32_t announced = group.announced(filter + Filter::kHeader);
          group.each_warp(states, [=, &params](Warp& warp, State& state) {
            Products::template run<kPlanes>(warp, state.sums.sum[0], params, filter, first, plane_bytes);
          });
          group.each_warp(states, [](Warp& warp, State& state) { warp.template wait_products<1>(state.sums.sum[0]); });
          offset = group.arrived(announced);
          // The step before is done.
          if (last_filter >= 0) group.arrive_warps(barrier(params, kFilterEmpty, last_filter));
          if (shift == 0 && last_patch >= 0) group.arrive_warps(barrier(params, kPatchEmpty, last_patch));
          last_filter = use.stage;
          use.next();
        }
      };
      // Half the planes of a chunk, where the others have no channels.
      if (params.in_channels - chunk * Patch::kChunk <= Patch::kChunk / 2) {
        each_shift(std::integral_constant<int, kConfig.planes / 2>{});
      } else {
        each_shift(std::integral_constant<int, kConfig.planes>{});
      }
      last_patch = from.stage;
      from.next(patch_stages(params));
      if (++chunk == params.chunks) {
        chunk = 0;
        if (patch + 1 < patches) {
          shifts = shifts_of((patch + 1) / params.chunks);
          begin = begin_of(shifts);
        }
      }
    }
    group.each_warp(states, [](Warp& warp, State& state) { warp.template wait_products<0>(state.sums.sum[0]); });
    group.arrive_warps(barrier(params, kFilterEmpty, last_filter));
    group.arrive_warps(barrier(params, kPatchEmpty, last_patch));
  }

  // Barriers by name, so that a test can take them away one at a time.
  static constexpr int kStagingBarrier = 0;
  static constexpr int kOutputBarrier = 1;
  static constexpr int kTableBarrier = 2;
};

}  // namespace convt
