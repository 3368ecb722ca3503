#pragma once

#include <cstdint>

#include "geometry/divmod.hpp"

// What a wgmma is told of an operand in shared memory (PTX ISA, "Matrix Descriptor Format").
namespace convt::sm90 {

// Without swizzle: eight rows of 16 bytes lie one behind the other, eight further rows 128 bytes on, the next 16 bytes along the
// reduction `pitch` on. Address and pitch count vectors of 16 bytes; 14 bits each.
CONVT_HOST_DEVICE inline std::uint64_t operand_at(std::uint32_t address, std::uint32_t pitch) {
  return std::uint64_t(8) << 32 | (address & 0x3fffu) | pitch << 16;
}

// What the fields say, bytes.
struct OperandFields {
  std::int32_t address;
  std::int32_t along_reduction;  // from one core matrix, 8 rows of 16 bytes, to the next
  std::int32_t along_rows;
};
CONVT_HOST_DEVICE inline OperandFields fields_of(std::uint64_t descriptor) {
  const auto field = [descriptor](int bit) { return std::int32_t(descriptor >> bit & 0x3fff) * 16; };
  return {field(0), field(16), field(32)};
}

}  // namespace convt::sm90
