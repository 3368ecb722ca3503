#pragma once

#include "arch/patch_box.hpp"
#include "config/tile_config.hpp"

namespace convt {

// A box in the words of the GPU's copy engine. Asks the driver, but no GPU. Throws std::runtime_error.
void describe_box(const PatchBox& box, Operand operand, PatchCopy& copy);

}  // namespace convt
