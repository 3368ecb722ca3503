#pragma once

#include "collective/epilogue.hpp"
#include "collective/filter_loader.hpp"
#include "collective/patch_loader.hpp"
#include "collective/split_sum.hpp"

namespace convt {

// Forward: output[v, q] = sum over (shift, ci) of filter[v, ci, shift] * input[ci, q - shift], all phases of a tile at once.
// The same text runs on a GPU and, thread block by thread block, on a host (Executor). Between two barriers a warp runs alone.
template <TileConfig kConfig, Operand kOperand>
struct ImplicitGemm {
  using Params = GemmParams;
  using Filter = FilterLoader<kConfig, kOperand>;
  using Patch = PatchLoader<kConfig, kOperand>;
  using Products = Mma<kConfig, kOperand>;
  using Output = Epilogue<kConfig, kOperand>;
  using Splits = SplitSum<kConfig, kOperand>;
  static constexpr TileConfig config = kConfig;
  static constexpr Operand operand = kOperand;
  static constexpr int kThreads = kConfig.threads();
  static constexpr int kBlocks = kConfig.blocks_of(kOperand);
  static constexpr bool kAhead = Products::kBuffers == 2;   // fragments are fetched one MMA step ahead

  template <int kLanes>
  struct State {
    typename Products::template State<kLanes> products;
    typename Patch::template State<kLanes> patch;
  };

  template <class Executor>
  CONVT_HOST_DEVICE static void run(Executor& block, const GemmParams& params) {
    using Warp = typename Executor::Warp;
    using WarpState = State<Executor::kLanes>;
    typename Executor::template PerWarp<WarpState> states;

    const Tile tile = tile_of(params, block.index());
    const char* tables = params.tables;
    const PhaseBlock phases = block.template load<PhaseBlock>(tables + tile.phase_block * sizeof(PhaseBlock));
    const PatchRange patches = patches_of(params, phases, tile.split);

    if (patches.begin < patches.end) {
      // Read anew for the same reason as the tile below.
      const auto group_at = [&](const Tile& of, std::int32_t patch) {
        const auto phases = block.template load<PhaseBlock>(tables + of.phase_block * sizeof(PhaseBlock));
        const std::int32_t index = phases.first_group + patch / params.chunks;
        return block.template load<ShiftGroup>(tables + params.table.groups + index * sizeof(ShiftGroup));
      };
      // Where a patch's filter begins in the block's stream, in steps.
      const auto step_at = [&](const ShiftGroup& group, std::int32_t patch) {
        return group.first_step * params.chunks + patch % params.chunks * group.shifts;
      };
      ShiftGroup group = group_at(tile, patches.begin), next_group = group;
      const std::int32_t first_step = step_at(group, patches.begin);
      const std::int32_t last_step = patches.end == phases.groups * params.chunks
                                         ? phases.steps * params.chunks
                                         : step_at(group_at(tile, patches.end), patches.end);
      const std::int64_t stream =
          (std::int64_t(tile.conv_group) * params.channel_blocks + tile.channel_block) * params.steps * params.chunks +
          std::int64_t(phases.first_step) * params.chunks + first_step;
      const char* slab = params.filter + stream * Filter::kSlabBytes;
      std::int32_t slabs_left = last_step - first_step;

      const auto fetch_filter = [&](std::int32_t stage) {
        const bool any = slabs_left > 0;
        const char* source = slab;
        block.each_warp(states, [=](Warp& warp, WarpState&) {
          if (any) Filter::load(warp, source, Filter::stage_offset(stage));
          warp.commit();
        });
        slab += Filter::kSlabBytes;
        --slabs_left;
      };
      for (std::int32_t stage = 0; stage < kConfig.filter_stages - 1; ++stage) fetch_filter(stage);

      const char* patch_origin = Patch::origin(params, tile, group);
      block.each_warp(states, [=, &params](Warp& warp, WarpState& state) {
        Patch::tabulate(warp, params, tile, group);
        Patch::template load_whole<Executor::kLanes>(warp, params, group, patch_origin, patches.begin % params.chunks,
                                                     params.shared.patch);
      });

      std::int32_t stage = kConfig.filter_stages - 1, parity = 0;   // the slab in use, and the patch
      // Afterwards a step's filter and patch are complete for all warps, and all have read what is overwritten next.
      const auto enter = [&] {
        block.each_warp(states, [](Warp& warp, WarpState&) { warp.template wait<kConfig.filter_stages - 2>(); });
        block.sync(kStepBarrier);
        fetch_filter(stage);
        stage = stage + 1 == kConfig.filter_stages ? 0 : stage + 1;
        const std::int32_t patch = params.shared.patch + parity * params.shared.patch_stage_bytes;
        const std::int32_t header = Filter::stage_offset(stage) + Filter::kHeader;
        block.each_warp(states,
                        [=](Warp& warp, WarpState& state) { Products::enter(warp, state.products, patch, header); });
      };
      // Fragments of a step's MMA step; those of the first are fetched before the products of the step before.
      const auto fetch = [&](int step) {
        const std::int32_t filter = Filter::stage_offset(stage), plane_bytes = group.pixels * 16;
        block.each_warp(states, [=](Warp& warp, WarpState& state) {
          Products::fetch(warp, state.products, filter, plane_bytes, step, step % Products::kBuffers);
        });
      };

      block.each_warp(states, [=](Warp& warp, WarpState& state) { Products::clear(warp, state.products); });
      const auto* first_record = tables + params.table.shifts + group.first_shift * sizeof(ShiftRecord);
      const ShiftRecord record = block.template load<ShiftRecord>(first_record);
      block.each_warp(states, [=, &params](Warp& warp, WarpState& state) {
        Products::place(warp, state.products, params, group);
        Products::announce(warp, state.products, record);
      });

      // The next patch is loaded meanwhile, its batches spread evenly over the steps: each is on its way during a step's
      // products and written at the end of it.
      std::int32_t pending = -1, loaded = 0, batches = 0, credit = 0, chunk = patches.begin % params.chunks;
      const auto write_pending = [&] {
        if (pending < 0) return;
        const std::int32_t batch = pending;
        const std::int32_t target = params.shared.patch + (parity ^ 1) * params.shared.patch_stage_bytes;
        block.each_warp(states, [=, &params](Warp& warp, WarpState& state) {
          Patch::store(warp, state.patch, params, next_group, target, batch);
        });
        pending = -1;
      };
      const auto load_due = [&](std::int32_t shifts) {
        for (credit += batches; credit >= shifts; credit -= shifts) {
          write_pending();  // few steps and much to load: some latency shows
          const std::int32_t batch = loaded, next_chunk = chunk + 1 == params.chunks ? 0 : chunk + 1;
          block.each_warp(states, [=, &params](Warp& warp, WarpState& state) {
            Patch::load(warp, state.patch, params, next_group, patch_origin, next_chunk, batch);
          });
          pending = loaded++;
        }
      };
      // Turns to the patch after `patch`, whose own steps come next.
      const auto prepare = [&](std::int32_t patch) {
        const bool more = patch + 1 < patches.end;
        if (more && chunk + 1 == params.chunks) {
          const Tile again = tile_of(params, block.index());
          next_group = group_at(again, patch + 1);
          patch_origin = Patch::origin(params, again, next_group);
          // The table's entries are private to their threads, and the loads that used them are done.
          block.each_warp(states,
                          [=, &params](Warp& warp, WarpState&) { Patch::tabulate(warp, params, again, next_group); });
        }
        batches = more ? Patch::batches(params, next_group) : 0;
        loaded = credit = 0;
      };

      enter();
      prepare(patches.begin);
      load_due(group.shifts);
      if constexpr (kAhead) fetch(0);
      for (std::int32_t patch = patches.begin; patch < patches.end; ++patch) {
#pragma unroll 1
        for (std::int32_t left = group.shifts - 1; left >= 0; --left) {
          block.each_warp(states, [=](Warp& warp, WarpState& state) { Products::begin(warp, state.products); });
          constexpr int last = Products::kSteps - 1;
#pragma unroll
          for (int step = 0; step < last; ++step) {
            fetch(kAhead ? step + 1 : step);
            block.each_warp(states, [=](Warp& warp, WarpState& state) {
              Products::multiply(warp, state.products, step % Products::kBuffers);
            });
          }
          if constexpr (!kAhead) fetch(last);
          write_pending();
          if (left > 0 || patch + 1 < patches.end) {
            if (left == 0) {
              parity ^= 1;
              if (++chunk == params.chunks) {
                chunk = 0;
                group = next_group;
                block.each_warp(states, [=, &params](Warp& warp, WarpState& state) {
                  Products::place(warp, state.products, params, next_group);
                });
              }
            }
            enter();
            if (left == 0) prepare(patch + 1);
            load_due(group.shifts);
            if constexpr (kAhead) fetch(0);
          }
          block.each_warp(states, [=](Warp& warp, WarpState& state) {
            Products::multiply(warp, state.products, last % Products::kBuffers);
          });
        }
      }
      block.each_warp(states, [](Warp& warp, WarpState&) { warp.template wait<0>(); });
    } else {
      block.each_warp(states, [=](Warp& warp, WarpState& state) { Products::clear(warp, state.products); });
    }

    // Found anew: kept, tile and phases would take the registers of the main loop.
    const Tile leaving = tile_of(params, block.index());
    if (params.splits > 1 && !Splits::join(block, states, params, leaving, kSplitBarrier)) return;
    if (params.way_out != WayOut::staged) {
      block.each_warp(states, [=, &params](Warp& warp, WarpState& state) {
        Output::write_direct(warp, state.products, params, leaving);
      });
      block.finish();
      return;
    }
    const PhaseBlock left = block.template load<PhaseBlock>(tables + leaving.phase_block * sizeof(PhaseBlock));
    block.sync(kStagingBarrier);  // the staging takes the pipeline's place
    block.each_warp(states, [=, &params](Warp& warp, WarpState& state) {
      Output::stage(warp, state.products, params, leaving, left);
    });
    block.sync(kOutputBarrier);
    block.each_warp(states, [=, &params](Warp& warp, WarpState&) { Output::write(warp, params, leaving, left); });
    block.finish();
  }

  // Barriers by name, so that a test can take them away one at a time.
  static constexpr int kStepBarrier = 0;
  static constexpr int kStagingBarrier = 1;
  static constexpr int kOutputBarrier = 2;
  static constexpr int kSplitBarrier = 3;
};

}  // namespace convt
