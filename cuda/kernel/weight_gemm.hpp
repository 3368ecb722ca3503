#pragma once

#include <cstddef>

#include "collective/box_loader.hpp"
#include "collective/outer_product.hpp"
#include "collective/weight_store.hpp"

namespace convt {

// grad_weight: result[ci, (tap, co)] = sum over pixels of input[ci, i] * grad_output[co, stride * i + dilation * tap - padding].
// A thread block keeps the sums of some taps and channels and walks over boxes of pixels: of every box one tile of the input and
// one patch of grad_output, which all of its taps read. Splits of the pixels are added up by SumPartials.
template <WeightConfig kConfig, Operand kOperand>
struct WeightGemm {
  using Params = WeightParams;
  using Loader = BoxLoader<kConfig, kOperand>;
  using Products = OuterProduct<kConfig, kOperand>;
  static constexpr WeightConfig config = kConfig;
  static constexpr Operand operand = kOperand;
  static constexpr int kThreads = kConfig.threads();
  static constexpr int kBlocks = kConfig.blocks_of(kOperand);
  static constexpr bool kAhead = Products::kBuffers == 2;   // fragments are fetched one MMA step ahead
  // Batches that a step issues, and the steps that they have to arrive.
  static constexpr int kIssued = kConfig.issued(kOperand);
  static constexpr int kAway = kConfig.away(kOperand);

  template <int kLanes>
  struct State {
    typename Products::template State<kLanes> products;
    typename Loader::template State<kLanes> slot[kAway][kIssued];
  };

  template <class Executor>
  CONVT_HOST_DEVICE static void run(Executor& block, const WeightParams& params, const char* tables) {
    using Warp = typename Executor::Warp;
    using WarpState = State<Executor::kLanes>;
    typename Executor::template PerWarp<WarpState> states;

    const WeightTile tile = weight_tile(params, block.index());
    const std::int32_t first_box = tile.first_box, end_box = tile.end_box;
    const typename Loader::Left left = Loader::left_of(params, tile);
    const std::int32_t batches = Loader::batches(params);
    // What is rarely needed is found anew: kept, it would take the registers of the main loop.
    const auto block_at = [&](const WeightTile& of) {
      return tables + params.table.blocks + of.tap_block * sizeof(WeightBlock);
    };
    const auto bounds_of = [&](const WeightTile& of) { return block.template reread<PatchBounds>(block_at(of)); };
    const auto group_of = [&](const WeightTile& of) {
      return block.template reread<ShiftGroup>(block_at(of) + offsetof(WeightBlock, group));
    };
    const typename Loader::Origin base = Loader::base(params, tile, bounds_of(tile));
    const auto table_of = [&](std::int32_t box) {
      return params.shared.pixel_tables + (box - first_box) % 2 * params.shared.pixel_table_bytes;
    };
    // Turns to a box that is loaded later: where its pixels are. Whole boxes find the table of the one before them.
    std::uint32_t whole = 0;   // a bit per table
    const auto tabulate = [&](std::int32_t index) {
      if (index >= end_box) return;
      const WeightTile again = weight_tile(params, block.index());
      const Tile box = box_of(params, index);
      const std::uint32_t bit = 1u << (index - first_box) % 2;
      const bool is_whole = Loader::is_whole(params, bounds_of(again), box);
      if (is_whole && (whole & bit)) return;
      whole = is_whole ? whole | bit : whole & ~bit;
      const ShiftGroup group = group_of(again);
      const std::int32_t table = table_of(index);
      block.each_warp(states, [=, &params](Warp& warp, WarpState&) {
        Loader::tabulate(warp, params, group, box, tables, table, index == first_box);
      });
    };
    const auto origin_of = [&](std::int32_t index) { return Loader::origin(params, base, box_of(params, index)); };
    const auto load = [&](int step, int at, std::int32_t batch, const typename Loader::Origin& origin,
                          std::int32_t table) {
      block.each_warp(states, [=, &params](Warp& warp, WarpState& state) {
        Loader::load(warp, state.slot[step % kAway][at], params, left, origin, table, batch);
      });
    };
    const auto store = [&](int step, int at, std::int32_t batch, std::int32_t parity) {
      block.each_warp(states, [=, &params](Warp& warp, WarpState& state) {
        Loader::store(warp, state.slot[step % kAway][at], params, parity, batch);
      });
    };
    // Batches from `first`, several on their way at a time, with nothing else to do meanwhile.
    const auto load_rest = [&](std::int32_t first, const typename Loader::Origin& origin, std::int32_t table,
                               std::int32_t parity) {
#pragma unroll 1
      for (; first < batches; first += kAway * kIssued) {
#pragma unroll
        for (int at = 0; at < kAway * kIssued; ++at) {
          if (first + at < batches) load(at / kIssued, at % kIssued, first + at, origin, table);
        }
#pragma unroll
        for (int at = 0; at < kAway * kIssued; ++at) {
          if (first + at < batches) store(at / kIssued, at % kIssued, first + at, parity);
        }
      }
    };
    const auto fetch = [&](std::int32_t parity, int step) {
      const std::int32_t input = params.shared.input + parity * kConfig.input_stage_bytes(kOperand);
      const std::int32_t patch = params.shared.patch + parity * params.shared.patch_stage_bytes;
      block.each_warp(states, [=, &params](Warp& warp, WarpState& state) {
        Products::fetch(warp, state.products, input, patch, params.shared.positions, step, step % Products::kBuffers);
      });
    };
    const auto multiply = [&](int step) {
      block.each_warp(states, [=](Warp& warp, WarpState& state) {
        Products::multiply(warp, state.products, step % Products::kBuffers);
      });
    };

    {
      const ShiftGroup group = group_of(tile);
      block.each_warp(states, [=, &params](Warp& warp, WarpState& state) {
        Products::place(warp, state.products, params, group, tables);
        warp.lanes([&](int lane) {
          for (std::int32_t position = warp.thread(lane); position < kConfig.pixels; position += kThreads) {
            const std::int32_t pixel = position_in_patch(params.patch.axes, group, position);
            warp.template store<std::int32_t>(params.shared.positions + position * 4, pixel * 16);
          }
        });
      });
    }
    tabulate(first_box);
    block.sync(kTableBarrier);
    load_rest(0, origin_of(first_box), table_of(first_box), 0);
    tabulate(first_box + 1);

    std::int32_t parity = 0;
    block.sync(kBoxBarrier);
    if constexpr (kAhead) fetch(0, 0);
#pragma unroll 1
    for (std::int32_t index = first_box; index < end_box; ++index) {
      // The next box comes in meanwhile: batches are issued before a step's products and written after them.
      const bool more = index + 1 < end_box;
      const std::int32_t due = more ? batches : 0, table = table_of(index + 1);
      typename Loader::Origin origin{};
      if (more) origin = origin_of(index + 1);
      constexpr int last = Products::kSteps - 1;
      const auto store_of = [&](int step) {
#pragma unroll
        for (int at = 0; at < kIssued; ++at) {
          if (step * kIssued + at < due) store(step, at, step * kIssued + at, parity ^ 1);
        }
      };
#pragma unroll
      for (int step = 0; step < last; ++step) {
#pragma unroll
        for (int at = 0; at < kIssued; ++at) {
          if (step * kIssued + at < due) load(step, at, step * kIssued + at, origin, table);
        }
        fetch(parity, kAhead ? step + 1 : step);
        multiply(step);
        if (step + 1 >= kAway) store_of(step + 1 - kAway);
      }
#pragma unroll
      for (int step = last + 1 - kAway; step < last; ++step) store_of(step);
      if constexpr (!kAhead) fetch(parity, last);
      if (more) {
        load_rest(last * kIssued, origin, table, parity ^ 1);   // what is left: some latency shows
        tabulate(index + 2);
        parity ^= 1;
        block.sync(kBoxBarrier);
        if constexpr (kAhead) fetch(parity, 0);
      }
      multiply(last);
    }
    const WeightTile leaving = weight_tile(params, block.index());
    const ShiftGroup group = group_of(leaving);
    block.each_warp(states, [=, &params](Warp& warp, WarpState& state) {
      WeightStore<kConfig, kOperand>::write(warp, state.products, params, leaving, group, tables);
    });
    block.finish();
  }

  // Barriers by name, so that a test can take them away one at a time.
  static constexpr int kTableBarrier = 0;
  static constexpr int kBoxBarrier = 1;
};

}  // namespace convt
