#pragma once

#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "launch/gemm_cost.hpp"

namespace convt {

// What is tried: where grids begin, output channels per row block, and how often a reduction is cut.
std::vector<Origins> origins_of(const GemmShape& shape);
std::vector<std::int32_t> channel_blocks(const GemmWork& work);
bool can_split(const GemmWork& work, const Launch& launch, std::size_t spans);

// Rows of a tile that may have channels.
std::int32_t rows_of(const GemmWork& work);
// Positions that rows of a tile may begin at the multiples of: pieces of 16 bytes do so as well.
std::int32_t even_positions(const GemmWork& work);

// Warpgroups that store rows keep all W phases of a channel in the same rows of a wgmma.
RowOrder order_of(const GemmWork& work);

// The positions that tiles cover: of grad_input, the pixels that it writes.
QGrid grid_of(const GemmShape& shape, const Origins& origin, int axis);
Positions positions_of(const GemmShape& shape, const Origins& origin);   // with the batch

// How a configuration may compute a request, and how long that takes.
struct GemmChoice {
  Origins origin{};
  std::int32_t block_channels = 0;
  std::int32_t splits = 1;
  TileBox box{};
  std::int32_t place = 0;                             // of the box on its list
  const std::vector<BlockShifts>* blocks = nullptr;   // the search's
  GemmCost cost;
};

// Finds the choices of least cost for one request. Configurations share what is listed for them.
class GemmSearch {
 public:
  explicit GemmSearch(const Request& request) : shape_(gemm_shape(request)) {}   // forward or grad_input
  const GemmShape& shape() const { return shape_; }
  // The same with neighbouring outputs along an axis as phases.
  GemmSearch& together(int axis, std::int64_t outputs);
  // Of equals, the first that is listed. Nothing when no tile's patch fits.
  std::optional<GemmChoice> best(const GemmWork& work);

 private:
  explicit GemmSearch(const GemmShape& shape) : shape_(shape) {}
  struct Tiling {
    TileBox box;
    double count;         // of boxes
    std::int32_t place;
  };
  using Tilings = std::vector<Tiling>;   // those of fewest boxes first

  const std::vector<BlockShifts>& blocks_of(const Origins& origin, std::int32_t rows, std::int32_t channels, WayIn way);
  const Tilings& tilings_of(const GemmWork& work, const Origins& origin, const std::vector<BlockShifts>& blocks);
  void search(const GemmWork& work, const Origins& origin, std::int32_t channels, std::optional<GemmChoice>& best);

  GemmShape shape_;
  std::map<std::pair<int, std::int64_t>, std::unique_ptr<GemmSearch>> together_;
  std::map<std::tuple<Origins, std::int32_t, std::int32_t, WayIn>, std::vector<BlockShifts>> blocks_;
  std::map<std::tuple<Origins, int, std::optional<Packing>>, Tilings> tilings_;
};

}  // namespace convt
