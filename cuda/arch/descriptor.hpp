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

// In lines of 128 or 64 bytes, of which eight lie one behind the other, eight further ones behind those. Where the reduction runs along
// lines, they are rows; where it runs across, rows beyond a line's are `pitch` on. The vectors of a line change places: bits 4 to 6 of
// an address are those and bits 7 to 9, one or the other; of 64 bytes, bits 4 and 5 and bits 7 and 8. So of the address itself, wherever
// the operand begins: any line may be its first (docs/ways_in.md).
CONVT_HOST_DEVICE inline std::uint64_t operand_in_lines(std::uint32_t address, std::uint32_t pitch,
                                                        int line_bytes = 128) {
  return std::uint64_t(line_bytes == 128 ? 1 : 2) << 62 | std::uint64_t(line_bytes / 2) << 32 | (address & 0x3fffu) |
         pitch << 16;
}

// What the fields say, bytes.
struct OperandFields {
  std::int32_t address;
  std::int32_t
      along_reduction;  // from one core matrix, 8 rows of 16 bytes, to the next; of an operand in lines, its `pitch`
  std::int32_t along_rows;  // or from eight lines to the next
  int line_bytes;           // or 0
};
CONVT_HOST_DEVICE inline OperandFields fields_of(std::uint64_t descriptor) {
  const auto field = [descriptor](int bit) { return std::int32_t(descriptor >> bit & 0x3fff) * 16; };
  constexpr int line_bytes[] = {0, 128, 64, 32};
  return {field(0), field(16), field(32), line_bytes[descriptor >> 62]};
}
CONVT_HOST_DEVICE inline std::int32_t in_its_line(std::int32_t address, int line_bytes = 128) {
  return address ^ (address >> 7 & (line_bytes / 16 - 1)) << 4;
}

}  // namespace convt::sm90
