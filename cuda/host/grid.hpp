#pragma once

#include <cstdint>

#include "host/kernel_args.hpp"

namespace convt::host::CONVT_ISA {

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Takes the fastest digit off a mixed-radix number.
inline std::int64_t digit(std::int64_t& number, std::int64_t radix) {
  const std::int64_t value = number % radix;
  number /= radix;
  return value;
}

// One box of the grid, clipped to it.
struct Box {
  std::int64_t image, images;
  std::int64_t begin[3], extent[3];
};

inline Box box_at(const GridArgs& grid, std::int64_t index) {
  Box box{};
  for (int axis = 2; axis >= 0; --axis) {
    box.begin[axis] = digit(index, grid.boxes[axis + 1]) * grid.box[axis];
    box.extent[axis] = smaller(grid.box[axis], grid.extent[axis] - box.begin[axis]);
  }
  box.image = index * grid.box_images;
  box.images = smaller(grid.box_images, grid.images - box.image);
  return box;
}

inline std::int64_t box_count(const GridArgs& grid) {
  return grid.boxes[0] * grid.boxes[1] * grid.boxes[2] * grid.boxes[3];
}

// Stretches of consecutive positions that cover a box.
struct Runs {
  std::int64_t count[3];    // along images, D, H
  std::int64_t pitch[3];
  std::int64_t length;
};

inline Runs runs_of(const Box& box, const std::int64_t (&patch_extent)[3], int run_axis) {
  const std::int64_t extent[4] = {box.images, box.extent[0], box.extent[1], box.extent[2]};
  const std::int64_t pitch[4] = {patch_extent[0] * patch_extent[1] * patch_extent[2], patch_extent[1] * patch_extent[2],
                                 patch_extent[2], 1};
  Runs runs{{1, 1, 1}, {pitch[0], pitch[1], pitch[2]}, 1};
  for (int axis = 0; axis < run_axis && axis < 3; ++axis) runs.count[axis] = extent[axis];
  for (int axis = run_axis; axis < 4; ++axis) runs.length += (extent[axis] - 1) * pitch[axis];
  return runs;
}

template <class Body>
inline void for_each_run(const Runs& runs, Body&& body) {
  for (std::int64_t image = 0; image < runs.count[0]; ++image) {
    for (std::int64_t d = 0; d < runs.count[1]; ++d) {
      for (std::int64_t h = 0; h < runs.count[2]; ++h) {
        body(image * runs.pitch[0] + d * runs.pitch[1] + h * runs.pitch[2]);
      }
    }
  }
}

}  // namespace convt::host::CONVT_ISA
