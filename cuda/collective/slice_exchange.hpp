#pragma once

#include "collective/pair_exit.hpp"
#include "collective/pixel_exit.hpp"
#include "collective/row_exit.hpp"

namespace convt {

// Between warpgroups that multiply and warps that store: slices of sums in shared memory, as many stages of them as there is room for.
// Of a single stage those who multiply store themselves.
template <class Kernel>
struct SliceExchange {
  using Ring = typename Kernel::template Ring<kMostSliceStages>;

  // Calls it with the way out that is not staged.
  template <class Visit>
  CONVT_HOST_DEVICE static void by_way_out(const GemmParams& params, Visit visit) {
    if (params.way_out == WayOut::pixels) {
      visit(PixelExit<Kernel::config, Kernel::operand>{});
    } else if (params.way_out == WayOut::rows) {
      visit(RowExit<Kernel::config, Kernel::operand, (Kernel::kStorers > 0)>{});
    } else {
      visit(PairExit<Kernel::config, Kernel::operand>{});
    }
  }

  // The same for those who store what they have multiplied: where others could, rows alone.
  template <class Visit>
  CONVT_HOST_DEVICE static void by_own_way_out(const GemmParams& params, Visit visit) {
    if constexpr (Kernel::kStorers > 0) {
      visit(RowExit<Kernel::config, Kernel::operand, false>{});
    } else {
      by_way_out(params, visit);
    }
  }

  CONVT_HOST_DEVICE static std::int32_t slice_of(const GemmParams& params, std::int32_t stage, std::int32_t warp) {
    return params.shared.slices + (stage * Kernel::config.warps() + warp) * kExitBytes;
  }

  // Sums to those who store them, slice by slice.
  template <class Executor, class States>
  CONVT_HOST_DEVICE static void hand_over(Executor& group, States& states, const GemmParams& params, Ring& to) {
    by_way_out(params, [&](auto exit) { hand_over_to<decltype(exit)>(group, states, params, to); });
  }
  template <class Exit, class Executor, class States>
  CONVT_HOST_DEVICE static void hand_over_to(Executor& group, States& states, const GemmParams& params, Ring& to) {
    using Warp = typename Executor::Warp;
    const std::int32_t first = group.warpgroup() * kMostSliceStages;
#pragma unroll
    for (int slice = 0; slice < Exit::kSlices; ++slice) {
      group.wait(Kernel::barrier(params, Kernel::kSliceEmpty, first + to.stage), to.parity ^ 1);
      group.each_warp(states, [=, &params, stage = to.stage](Warp& warp, auto& state) {
        Exit::turn(warp, state.sums, state.bias, params, slice_of(params, stage, warp.index()), slice);
      });
      group.arrive_warps(Kernel::barrier(params, Kernel::kSliceFull, first + to.stage));
      to.next(params.shared.slice_stages);
    }
  }

  // What every step-th of the warps that multiply has handed over.
  template <class Executor>
  CONVT_HOST_DEVICE static void store(Executor& group, const GemmParams& params, std::int32_t first,
                                      std::int32_t step) {
    if (params.way_out == WayOut::staged || params.shared.slice_stages == 1 || first >= Kernel::config.warps()) return;
    by_way_out(params, [&](auto exit) { store_by<decltype(exit)>(group, params, first, step); });
  }
  template <class Exit, class Executor>
  CONVT_HOST_DEVICE static void store_by(Executor& group, const GemmParams& params, std::int32_t first,
                                         std::int32_t step) {
    using Warp = typename Executor::Warp;
    struct State {
      typename Exit::template Places<Executor::kLanes> places;
    };
    typename Executor::template PerWarp<State> states;
    Ring from;
    std::int32_t of = first;
#pragma unroll 1
    for (std::int32_t index = group.index(); index < params.tiles;) {
      // Found anew for every warp: kept, it would take the registers of what is stored.
      const Tile tile = tile_of(params, index);
      const auto phases = group.template read<PhaseBlock>(params.tables + tile.phase_block * sizeof(PhaseBlock));
      group.each_warp(states, [=, &params](Warp& warp, State& state) {
        Exit::find(warp, state.places, params, tile, phases, of);
        warp.sync();
      });
      const std::int32_t own = of / 4 * kMostSliceStages;
      Ring at = from;
#pragma unroll 1
      for (int slice = 0; slice < Exit::kSlices; ++slice) {
        group.wait(Kernel::barrier(params, Kernel::kSliceFull, own + at.stage), at.parity);
        group.each_warp(states, [=, &params, stage = at.stage](Warp& warp, State& state) {
          Exit::leave(warp, state.places, params, slice_of(params, stage, of), slice, of);
        });
        group.arrive_warps(Kernel::barrier(params, Kernel::kSliceEmpty, own + at.stage));
        at.next(params.shared.slice_stages);
      }
      of += step;
      if (of < Kernel::config.warps()) continue;
      of = first;
      from = at;
      index += group.count();
    }
  }
};

}  // namespace convt
