#include "launch/gemm_boxes.hpp"

#include <algorithm>

namespace convt {
namespace {

std::vector<std::int32_t> extents(std::int64_t count, std::int64_t most) {
  std::vector<std::int32_t> made;
  const auto add = [&](std::int64_t extent) {
    if (extent >= 1 && extent <= std::min(count, most)) made.push_back(std::int32_t(extent));
  };
  const std::int64_t fewest = ceil_div(count, most);
  for (std::int64_t tiles = fewest; tiles < fewest + 5; ++tiles) add(ceil_div(count, tiles));
  for (std::int64_t extent = 8; extent <= most; extent *= 2) add(extent);
  add(1);
  std::sort(made.begin(), made.end());
  made.erase(std::unique(made.begin(), made.end()), made.end());
  return made;
}

}  // namespace

std::vector<TileBox> boxes(std::int32_t pixels, const Positions& q) {
  std::vector<TileBox> made;
  for (std::int32_t w : extents(q[3], pixels)) {
    for (std::int32_t h : extents(q[2], pixels / w)) {
      for (std::int32_t d : extents(q[1], pixels / (w * h))) {
        const std::int64_t most = pixels / (std::int64_t(w) * h * d);
        const std::int64_t n = std::min(q[0], most);
        const TileBox box{{std::int32_t(ceil_div(q[0], ceil_div(q[0], n))), d, h, w}};
        if (box.positions() * 2 >= std::min<std::int64_t>(pixels, q[0] * q[1] * q[2] * q[3])) made.push_back(box);
      }
    }
  }
  return made;
}

namespace {

// Boxes whose positions lie in one run of `pixels` neighbouring pixels.
std::vector<TileBox> run_boxes(std::int32_t pixels, const Positions& q, TileBox box) {
  const std::int64_t phases = box.packing.w_phases;
  std::vector<TileBox> made;
  // Along W: as the run's pixels are shared by 1, 2, ... rows; then as many rows, slabs and images as fit.
  std::int64_t previous = 0;
  for (std::int64_t rows = 1; rows <= pixels; ++rows) {
    const std::int64_t pitch =
        (pixels + box.packing.halo[2]) / rows / (box.packing.even * phases) * (box.packing.even * phases);
    const std::int64_t most = rows == 1 ? pixels : pitch / phases - box.packing.halo[2];
    if (most < 1) break;
    const std::int64_t w = ceil_div(q[3], ceil_div(q[3], std::min(q[3], most)));
    if (w == previous) continue;
    previous = w;
    const std::int64_t row = round_up((w + box.packing.halo[2]) * phases, box.packing.even);
    const std::int64_t rows_fit = (pixels - w) / row + 1;
    std::int64_t last_h = 0;
    for (std::int64_t h_most = std::min(q[2], rows_fit); h_most >= 1;
         h_most = h_most > 4 ? h_most * 3 / 4 : h_most - 1) {
      const std::int64_t h = ceil_div(q[2], ceil_div(q[2], h_most));
      if (h == last_h) continue;
      last_h = h;
      const std::int64_t slab = row * (h + box.packing.halo[1]), used = (h - 1) * row + w;
      const std::int64_t d_fit = std::min(q[1], (pixels - used) / slab + 1);
      const std::int64_t d = ceil_div(q[1], ceil_div(q[1], d_fit));
      const std::int64_t image = slab * (d + box.packing.halo[0]), all = (d - 1) * slab + used;
      const std::int64_t n_fit = std::min(q[0], (pixels - all) / image + 1);
      box.tile[0] = std::int32_t(ceil_div(q[0], ceil_div(q[0], n_fit)));
      box.tile[1] = std::int32_t(d);
      box.tile[2] = std::int32_t(h);
      box.tile[3] = std::int32_t(w);
      made.push_back(box);
    }
  }
  return made;
}

}  // namespace

Packing packing_of(const GemmShape& shape, const std::vector<BlockShifts>& blocks, std::int32_t even, WayIn way,
                   std::int32_t vector) {
  Packing packing;
  packing.even = even;
  packing.way = way;
  for (int axis = 0; axis < kAxes && in_lines(way); ++axis) packing.step[axis] = std::int32_t(shape.axes[axis].step);
  for (const BlockShifts& block : blocks) {
    for (const PatchSpan& span : block.spans) {
      for (int axis = 0; axis < kAxes; ++axis) {
        packing.halo[axis] = std::max(packing.halo[axis], span.high[axis] - span.low[axis]);
      }
      packing.w_phases = std::max(packing.w_phases, span.w_phases);
    }
  }
  if (way == WayIn::rows) packing.halo[2] += vector - 1;
  return packing;
}

namespace {

// Whether one copy spans the patch, where patches are copied.
bool is_copied(const TileBox& box) {
  if (!in_lines(box.packing.way)) return true;
  const PatchShape patch = patch_shape(box, {});
  bool fits =
      patch.extent[0] <= kMostBoxExtent && (patch.pitch[2] - 1) * std::int64_t(box.packing.step[2]) < kMostBoxExtent;
  for (int axis = 0; axis < kAxes; ++axis) {
    fits = fits && (patch.extent[1 + axis] - 1) * std::int64_t(box.packing.step[axis]) < kMostBoxExtent;
  }
  return fits;
}

}  // namespace

std::vector<TileBox> packed_boxes(std::int32_t pixels, const Positions& q, const Packing& packing) {
  TileBox box{{1, 1, 1, 1}, true, packing};
  std::vector<TileBox> made;
  for (box.run = pixels; box.run >= kGroupPixels; box.run /= 2) {
    const std::int32_t runs = pixels / box.run;
    for (const TileBox& of_run : run_boxes(box.run, q, box)) {
      // As many side by side along one outer axis, or half of them along two. Further out a run has no second position: the whole
      // tile's rows would lie between.
      for (int axis = 0; axis < kTileAxes - 1; ++axis) {
        for (int other = axis; other < (runs == 4 ? kTileAxes - 1 : axis + 1); ++other) {
          TileBox whole = of_run;
          whole.runs[axis] *= other == axis ? runs : 2;
          whole.runs[other] *= other == axis ? 1 : 2;
          bool wanted = true;
          for (int at = 0; at <= other && runs > 1; ++at) {
            if (at < other) whole.tile[at] = 1;
            wanted = wanted && (whole.runs[at] == 1 || whole.tile[at] * (whole.runs[at] - 1) < q[at]);
            whole.tile[at] *= whole.runs[at];
          }
          if (wanted && is_copied(whole)) made.push_back(whole);
        }
        if (runs == 1) break;
      }
    }
  }
  return made;
}

PatchShape patch_shape(const TileBox& box, const PatchSpan& span) {
  PatchShape shape{};
  shape.conflicts = 1;
  shape.extent[0] = box.tile[0];
  for (int axis = 0; axis < kAxes; ++axis)
    shape.extent[1 + axis] =
        box.tile[1 + axis] + (box.packed ? box.packing.halo[axis] : span.high[axis] - span.low[axis]);
  if (box.packed) {
    shape.pitch[3] = 1;
    shape.pitch[2] = std::int32_t(round_up(shape.extent[3] * box.packing.w_phases, box.packing.even));
    shape.pitch[1] = shape.pitch[2] * shape.extent[2];
    shape.pitch[0] = shape.pitch[1] * shape.extent[1];
    shape.pixels = std::int64_t(shape.pitch[0]) * shape.extent[0];
    return shape;
  }
  const std::int64_t all = box.positions();
  const auto lay = [&](bool padded) {
    std::int64_t pitch = 1, positions = 1;
    for (int axis = kTileAxes - 1; axis >= 0; --axis) {
      shape.pitch[axis] = std::int32_t(pitch);
      pitch *= shape.extent[axis] * (axis == kTileAxes - 1 ? span.w_phases : 1);
      positions *= box.tile[axis];
      // Eight positions in a row hit eight banks when a new row goes on where the last one stopped, modulo 8.
      if (positions < all && positions % 8 != 0 && pitch % 8 != positions % 8) {
        if (padded) {
          pitch += (positions % 8 - pitch % 8 + 8) % 8;
        } else {
          shape.conflicts = 1.4;
        }
      }
    }
    return pitch;
  };
  shape.pixels = lay(false);
  if (shape.conflicts == 1) return shape;
  const PatchShape plain = shape;
  shape.conflicts = 1;
  shape.pixels = lay(true);
  return double(shape.pixels) > 1.25 * double(plain.pixels) ? plain : shape;
}

std::int64_t plane_pixels(const GemmShape& geometry, const PatchShape& patch, int planes, std::int64_t capacity) {
  if (!geometry.gathers_along_channels() || planes == 0) return patch.pixels;
  const std::int64_t odd = planes == 8 ? 1 : 2;
  const std::int64_t padded = patch.pixels + (8 + odd - patch.pixels % 8) % 8;
  return padded <= capacity ? padded : patch.pixels;
}

}  // namespace convt
