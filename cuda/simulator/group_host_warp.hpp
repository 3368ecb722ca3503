#pragma once

#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <initializer_list>
#include <stdexcept>
#include <utility>
#include <vector>

#include "arch/descriptor.hpp"
#include "simulator/block_executor.hpp"

// A warp of a warp-specialised thread block, on the host.
namespace convt::simulator {

struct InputMemory {
  const char *begin = nullptr, *end = nullptr;   // null: anything
};

// A warp of a warpgroup. Products read their operands through descriptors, as late as the program allows or at once.
class GroupHostWarp : public HostWarp {
 public:
  GroupHostWarp(BlockMemory* memory, int index) : HostWarp(memory, index), memory_(memory) {}

  template <int kTiles>
  void begin_products(Lanes<float, 32> (&)[kTiles][4]) {}
  template <int kTiles>
  void commit_products(Lanes<float, 32> (&)[kTiles][4]) {
    committed_.push_back(std::move(issued_));
    issued_.clear();
  }
  template <int kPending, int kTiles>
  void wait_products(Lanes<float, 32> (&)[kTiles][4]) {
    while (int(committed_.size()) > kPending) {
      for (const auto& product : committed_.front()) product();
      committed_.pop_front();
    }
  }
  template <Operand kOperand, int kFirst, int kTiles>
  void multiply_group(Lanes<float, 32> (&sums)[kTiles][4], std::int32_t a, std::int32_t a_pitch, std::int32_t b,
                      std::int32_t b_pitch) {
    check_fields({a, a_pitch, b, b_pitch});
    issue<kOperand>(&sums[kFirst], sm90::operand_at(a / 16, a_pitch / 16), sm90::operand_at(b / 16, b_pitch / 16));
  }
  template <Operand kOperand, int kFirst, int kLineBytes, int kTiles>
  void multiply_boxes(Lanes<float, 32> (&sums)[kTiles][4], std::int32_t a, std::int32_t a_pitch, std::int32_t b) {
    check_fields({a, a_pitch, b});
    issue<kOperand>(&sums[kFirst], sm90::operand_at(a / 16, a_pitch / 16),
                    sm90::operand_in_lines(b / 16, 1, kLineBytes));
  }
  // Lane 8 m + i names the row of memory that takes column i of matrix m.
  void store_transposed(const Word& row, std::int32_t offset, const Word (&from)[4]) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int column = 0; column < 8; ++column) {
        char* const to = memory_->at(std::int32_t(row[matrix * 8 + column]) + offset, 16);
        for (int at = 0; at < 8; ++at) {
          const std::uint32_t word = from[matrix][at * 4 + column / 2];
          const auto half = std::uint16_t(column % 2 ? word >> 16 : word);
          std::memcpy(to + 2 * at, &half, 2);
        }
      }
    }
  }
  void publish() {}

  // Rows in registers, which must stay what they are until the products are made.
  template <Operand kOperand, bool kAcross, int kTiles>
  void multiply_lines(Lanes<float, 32> (&sums)[kTiles][4], const Word (&a)[4], std::int32_t b, std::int32_t pitch) {
    check_fields({b, pitch});
    const std::array<Word, 4> kept = {a[0], a[1], a[2], a[3]};
    const auto fields = sm90::fields_of(sm90::operand_in_lines(b / 16, pitch / 16));
    const auto product = [this, &a, kept, fields, to = &sums[0]] {
      constexpr int depth = is_float32(kOperand) ? 8 : 16, bytes = operand_bytes(kOperand);
      float rows[16][depth];
      for (int part = 0; part < 4; ++part) {
        for (int lane = 0; lane < 32; ++lane) {
          if (a[part][lane] != kept[part][lane]) throw std::runtime_error("wgmma: a fragment changed under way");
          unpack<kOperand>(rows[lane / 4 + part % 2 * 8], lane % 4, part / 2, kept[part][lane]);
        }
      }
      accumulate(to, 8 * kTiles, rows, [&](int column, float* into) {
        for (int at = 0; at < depth; ++at) {
          const std::int32_t from = kAcross ? column / 64 * fields.along_reduction + at / 8 * fields.along_rows +
                                                  at % 8 * 128 + column % 64 * bytes
                                            : column / 8 * fields.along_rows + column % 8 * 128 + at * bytes;
          into[at] = element<kOperand>(memory_->at(sm90::in_its_line(fields.address + from), bytes), 0);
        }
      });
    };
    if (memory_->schedule.late_copies) {
      issued_.push_back(product);
    } else {
      product();
    }
  }
  void settle(const char*&) const {}
  std::uint32_t load_half(std::int32_t offset) const {
    std::uint16_t half;
    std::memcpy(&half, memory_->at(offset, 2), 2);
    return half;
  }

  // Made when somebody waits for them, or at once.
  template <int kBytes>
  void copy_later(int, std::int32_t offset, const char* source, bool there) {
    struct alignas(kBytes) Piece {
      char byte[kBytes];
    };
    if (there) global<Piece>(source);   // aligned, and of the input
    const auto copy = [memory = memory_, offset, source, there] {
      const Piece none{};
      std::memcpy(memory->at(offset, kBytes), there ? source : none.byte, kBytes);
    };
    if (memory_->schedule.late_copies) {
      copies_.push_back(copy);
    } else {
      copy();
    }
  }
  std::vector<std::function<void()>> take_copies() { return std::exchange(copies_, {}); }
  void commit() { copy_groups_.push_back(take_copies()); }
  template <int kPending>
  void wait() {
    for (; int(copy_groups_.size()) > kPending; copy_groups_.pop_front()) {
      for (const auto& copy : copy_groups_.front()) copy();
    }
  }

  // Loaders read the input, and nothing else.
  void read_only(const InputMemory& input) { input_ = &input; }
  template <class T>
  T global(const char* source) const {
    if (input_ && input_->begin && (source < input_->begin || source + sizeof(T) > input_->end)) {
      throw std::out_of_range("global memory: a loader reads outside of the input");
    }
    return HostWarp::global<T>(source);
  }
  template <int kBytes>
  std::uint32_t word_if(bool there, const char* source) const {
    return there ? global<std::conditional_t<kBytes == 4, std::uint32_t, std::uint16_t>>(source) : 0;
  }
  Vector16 vector_if(bool there, const char* source) const { return there ? global<Vector16>(source) : Vector16{}; }

 private:
  // Addresses and pitches of operands: 14 bits, in units of 16 bytes.
  static void check_fields(std::initializer_list<std::int32_t> fields) {
    for (const std::int32_t bytes : fields) {
      if (bytes % 16 != 0 || bytes / 16 > 0x3fff) throw std::runtime_error("wgmma: operand does not fit a descriptor");
    }
  }

  template <Operand kOperand>
  void issue(Lanes<float, 32> (*to)[4], std::uint64_t a, std::uint64_t b) {
    const auto product = [this, rows = sm90::fields_of(a), pixels = sm90::fields_of(b), to] {
      multiply_now<kOperand>(to, rows, pixels);
    };
    if (memory_->schedule.late_copies) {
      issued_.push_back(product);
    } else {
      product();
    }
  }
  // This warp's 16 of the 64 rows.
  template <Operand kOperand>
  void multiply_now(Lanes<float, 32> (*sums)[4], const sm90::OperandFields& a, const sm90::OperandFields& b) {
    constexpr int depth = is_float32(kOperand) ? 8 : 16, vector = depth / 2;
    const auto row_of = [&](const sm90::OperandFields& operand, int row, float* to) {
      for (int half = 0; half < 2; ++half) {
        const int lines = operand.line_bytes;
        const std::int32_t at = operand.address + row / 8 * operand.along_rows +
                                (lines ? row % 8 * lines + half * 16 : row % 8 * 16 + half * operand.along_reduction);
        const char* from = memory_->at(lines ? sm90::in_its_line(at, lines) : at, 16);
        for (int at = 0; at < vector; ++at) to[half * vector + at] = element<kOperand>(from, at);
      }
    };
    float rows[16][depth];
    for (int row = 0; row < 16; ++row) row_of(a, index() % 4 * 16 + row, rows[row]);
    accumulate(sums, kGroupPixels, rows, [&](int column, float* to) { row_of(b, column, to); });
  }

  template <int kDepth, class ColumnOf>
  void accumulate(Lanes<float, 32> (*sums)[4], int columns, const float (&rows)[16][kDepth], ColumnOf column_of) {
    for (int column = 0; column < columns; ++column) {
      float other[kDepth];
      column_of(column, other);
      for (int row = 0; row < 16; ++row) {
        float& sum = sums[column / 8][row / 8 * 2 + column % 2][row % 8 * 4 + column % 8 / 2];
        double total = sum;
        for (int at = 0; at < kDepth; ++at) total += double(rows[row][at]) * double(other[at]);
        sum = float(total);
      }
    }
    ++memory_->counters->products;
  }

  template <Operand kOperand>
  static float element(const char* from, int at) {
    if constexpr (is_float32(kOperand)) {
      std::uint32_t word;
      std::memcpy(&word, from + at * 4, 4);
      return as_float(word & kTf32Mask);   // the tensor core looks at no more
    } else {
      std::uint16_t word;
      std::memcpy(&word, from + at * 2, 2);
      return widen<kOperand>(word);
    }
  }

  BlockMemory* memory_;
  const InputMemory* input_ = nullptr;
  std::vector<std::function<void()>> copies_, issued_;
  std::deque<std::vector<std::function<void()>>> copy_groups_, committed_;
};

}  // namespace convt::simulator
