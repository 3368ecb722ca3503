#pragma once

#include "collective/outer_fragments.hpp"
#include "collective/outer_loader.hpp"
#include "collective/outer_store.hpp"

namespace convt {

// grad_weight for Hopper: result[(tap, co), ci] = sum over pixels of grad_output[co, stride * i + dilation * tap - padding] *
// input[ci, i]. A warpgroup copies box after box, as far ahead as there are stages; the others multiply and wait for nothing but boxes.
// Splits of the pixels are added up by SumPartials.
template <OuterConfig kConfig, Operand kOperand, Innermost kInner>
struct OuterGemm {
  using Params = OuterParams;
  using Loader = OuterLoader<kConfig, kOperand, kInner>;
  using Fragments = OuterFragments<kConfig, kOperand, kInner>;
  using Store = OuterStore<kConfig, kOperand, kInner>;
  static constexpr OuterConfig config = kConfig;
  static constexpr Operand operand = kOperand;
  static constexpr int kThreads = kConfig.block_threads();
  static constexpr int kBlocks = 1;
  static constexpr int kProducts = Fragments::kSteps * Fragments::kTiles;   // of a box
  static_assert(kProducts % kFragments == 0 && kProducts > kFragments,
                "fragments keep their registers from box to box");

  CONVT_HOST_DEVICE static std::int32_t full(const OuterParams& params, std::int32_t stage) {
    return params.shared.barriers + stage * 8;
  }
  CONVT_HOST_DEVICE static std::int32_t empty(const OuterParams& params, std::int32_t stage) {
    return params.shared.barriers + (kMostBoxes + stage) * 8;
  }
  CONVT_HOST_DEVICE static int arrivals(int at) { return at < kMostBoxes ? kConfig.loaders() : kConfig.warps(); }

  // A place in the ring of stages, and the parity of its round.
  struct Ring {
    std::int32_t stage = 0;
    std::uint32_t parity = 0;
    CONVT_HOST_DEVICE void next(std::int32_t stages) {
      if (++stage == stages) {
        stage = 0;
        parity ^= 1;
      }
    }
  };

  // Inlined whatever its size: products may not cross a call.
  template <class Executor>
  CONVT_HOST_DEVICE [[gnu::always_inline]] static inline void run(Executor& block, const OuterParams& params,
                                                                  const char* tables) {
    block.setup(params.shared.barriers, 2 * kMostBoxes, [](int at) { return arrivals(at); });
    block.template roles<kConfig.loader_registers(kOperand), kConfig.consumer_registers(kOperand)>(
        [&](auto& group) { load(group, params, tables); }, [&](auto& group) { consume(group, params, tables); });
  }

  template <class Executor>
  CONVT_HOST_DEVICE static void load(Executor& group, const OuterParams& params, const char* tables) {
    using Warp = typename Executor::Warp;
    using State = typename Loader::template State<Executor::kLanes>;
    typename Executor::template PerWarp<State> states;
    const WeightTile tile = weight_tile(params, group.index());
    const typename Loader::Left left = Loader::left_of(params, tile);
    // Who touches a box again, to round it or because not all of it was copied, does so when the copies of the next are under way, where
    // a third stage is there to multiply meanwhile.
    const bool settles = is_float32(kOperand) || params.input_by_registers || params.patch_by_registers;
    const bool ahead = settles && !Loader::kTurns && params.stages > 2;
    std::int32_t last = -1;   // stage that is not settled
    Ring to;
    group.each_warp(states, [&params](Warp& warp, State&) { Loader::tabulate(warp, params); });
#pragma unroll 1
    for (std::int32_t index = tile.first_box; index < tile.end_box; ++index) {
      const std::int32_t told = (index - tile.first_box) % kToldBoxes;
      if (told == 0) {
        group.sync_loaders(kToldBarrier);   // nobody reads those before any more
        const char* const block = tables + params.table.blocks + tile.tap_block * sizeof(OuterBlock);
        group.each_warp(states,
                        [=, &params](Warp& warp, State&) { Loader::find_boxes(warp, params, tile, block, index); });
        group.sync_loaders(kTableBarrier);
      }
      const std::int32_t stage = to.stage;
      group.wait(empty(params, stage), to.parity ^ 1);
      group.each_warp(
          states, [=, &params](Warp& warp, State& state) { Loader::fetch(warp, state, params, told, left, stage); });
      if (settles) {
        group.each_warp(states, [](Warp& warp, State&) { warp.commit(); });
        if (!ahead) settle<0>(group, states, params, stage);
        if (ahead && last >= 0) settle<1>(group, states, params, last);
        last = stage;
      } else {
        group.arrive_copied(full(params, stage));
      }
      to.next(params.stages);
    }
    if (ahead && last >= 0) settle<0>(group, states, params, last);
  }

  // Of a box but those that are kPending boxes behind it: its copies have come, and it is what the products want.
  template <int kPending, class Executor, class States>
  CONVT_HOST_DEVICE static void settle(Executor& group, States& states, const OuterParams& params, std::int32_t stage) {
    using Warp = typename Executor::Warp;
    group.each_warp(states, [=, &params](Warp& warp, typename States::State& state) {
      warp.template wait<kPending>();
      if constexpr (is_float32(kOperand)) Loader::settle(warp, state, params, stage);
      warp.publish();
    });
    group.arrive_all(full(params, stage));
  }

  template <class Executor>
  CONVT_HOST_DEVICE static void consume(Executor& group, const OuterParams& params, const char* tables) {
    using Warp = typename Executor::Warp;
    using State = typename Fragments::template State<Executor::kLanes>;
    typename Executor::template PerWarp<State> states;
    const WeightTile tile = weight_tile(params, group.index());
    const auto block_of = [&](const WeightTile& of) {
      return group.template reread<OuterBlock>(tables + params.table.blocks + of.tap_block * sizeof(OuterBlock));
    };
    const OuterBlock own = block_of(tile);
    group.each_warp(states, [=, &params](Warp& warp, State& state) {
      place_positions(warp, params);
      Fragments::prepare(warp, state, params, own, tables);
    });
    group.sync_consumers(kPositionBarrier);
    Ring from;
    std::int32_t last = -1;   // stage whose products may be under way
#pragma unroll 1
    for (std::int32_t left = tile.end_box - tile.first_box; left > 0; --left) {
      group.wait(full(params, from.stage), from.parity);
      const std::int32_t input = params.shared.input + from.stage * kConfig.input_stage_bytes(kOperand);
      const std::int32_t patch = params.shared.patch + from.stage * params.shared.patch_stage_bytes;
      group.each_warp(states, [](Warp& warp, State&) { warp.publish(); });   // copies, to the tensor cores
#pragma unroll
      for (int at = 0; at < kProducts; ++at) {
        const int step = at / Fragments::kTiles, row_tile = at % Fragments::kTiles, buffer = at % kFragments;
        group.each_warp(states, [=, &params](Warp& warp, State& state) {
          if (row_tile == 0) Fragments::enter(warp, state, params, patch, step);
          warp.template wait_products<kFragments - 1>(state.sum[row_tile]);   // who has had this buffer
          Fragments::fetch(warp, state, row_tile, buffer);
          Fragments::multiply(warp, state, input, step, row_tile, buffer);
        });
        if (at == kFragments && last >= 0) group.arrive_warps(empty(params, last));   // all of that box are done
      }
      last = from.stage;
      from.next(params.stages);
    }
    group.each_warp(states, [](Warp& warp, State& state) {
#pragma unroll
      for (int row_tile = 0; row_tile < Fragments::kTiles; ++row_tile) {
        warp.template wait_products<0>(state.sum[row_tile]);
      }
    });
    const WeightTile leaving = weight_tile(params, group.index());
    const OuterBlock again = block_of(leaving);
    if (params.staged_pitch == 0) {
      group.each_warp(states, [=, &params](Warp& warp, State& state) {
        Store::write(warp, state, params, leaving, again, tables);
      });
    } else {
      group.sync_consumers(kDoneBarrier);
      group.each_warp(states,
                      [=, &params](Warp& warp, State& state) { Store::stage(warp, state, params, again.taps); });
      group.sync_consumers(kStagedBarrier);
      group.each_warp(states,
                      [=, &params](Warp& warp, State&) { Store::write_staged(warp, params, leaving, again, tables); });
    }
    group.finish();
  }

  // Where the pixels of a box's positions lie in its patch. Positions beyond the tile repeat the last: the input is zero there.
  template <class Warp>
  CONVT_HOST_DEVICE static void place_positions(Warp& warp, const OuterParams& params) {
    std::int32_t positions = 1;
    for (const OuterAxis& along : params.axes) positions *= along.tile;
    warp.lanes([&](int lane) {
      for (std::int32_t at = warp.thread(lane); at < kConfig.pixels(kOperand); at += kConfig.threads()) {
        std::int32_t rest = at < positions ? at : positions - 1, pixel = 0, pitch = 1;
        for (int axis = kTileAxes - 1; axis >= 0; --axis) {
          const OuterAxis& along = params.axes[axis];
          const std::int32_t outer = along.by_tile.quotient(rest);
          pixel += along.by_tile.remainder(rest, outer) * (along.step / along.phases) * pitch;
          pitch *= along.extent;
          rest = outer;
        }
        warp.template store<std::int32_t>(params.shared.positions + at * 4, pixel * params.pixel_bytes);
      }
    });
  }

  // Barriers by name, so that a test can take them away one at a time.
  static constexpr int kPositionBarrier = 0;
  static constexpr int kTableBarrier = 1;
  static constexpr int kToldBarrier = 2;
  static constexpr int kDoneBarrier = 3;
  static constexpr int kStagedBarrier = 4;
};

}  // namespace convt
