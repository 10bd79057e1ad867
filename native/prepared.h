// Activation rows made ready for the kernels: quantized into panels, or padded floats. Knows which kernel to call.
//
// One int8 number leaves about 0.6 % of a normally distributed activation behind where 64 share a scale, and more where
// tails are long. With spills the few largest have two or more, so that the scale need not make room for them
// (docs/decisions/0007-int8-activations.md).

#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels.h"

namespace moesaic {

// Memory on cache-line borders that only grows and is not cleared: pages stay mapped from call to call.
class Buffer {
 public:
  std::byte* reserve(std::size_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      const std::size_t rounded = (bytes + 4095) / 4096 * 4096;
      memory_.reset(static_cast<std::byte*>(std::aligned_alloc(4096, rounded)));
      if (!memory_) throw std::bad_alloc();
      size_ = rounded;
    }
    return memory_.get();
  }
  float* floats(std::size_t count) { return reinterpret_cast<float*>(reserve(sizeof(float) * count)); }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t size_ = 0;
};

// How activations are rounded.
struct Rounding {
  bool exact;   // not at all
  int stretch;  // columns of four parts with a scale each, 32 or 64, where rows are few
  int spills;   // of 128 columns, where rows are many; a group has at least one, unless there are none
};

class Prepared {
 public:
  // For products of `rows` activation rows with matrices of the shape and grid of `like`.
  Prepared(const Kernels& kernels, const Matrix& like, int rows, Rounding rounding);

  // Bytes needed, and where they are. Kept apart so that one buffer can hold many of these.
  std::size_t bytes() const;
  void place(std::byte* memory);

  int rows() const { return rows_; }
  // Rows that `fill` must be called for: some kernels want rows of zeros after the real ones.
  int filled_rows() const { return filled_rows_; }

  // Columns first .. first + count - 1 of a row, `first` at the start of a group, `count` whole groups or up to the last
  // column. Zeros for x = nullptr.
  void fill(int row, const float* x, int first, int count);

  // Row blocks of `m` times all rows; row t of the result is in row t of `out`, which has room for filled_rows() rows.
  void multiply(const Matrix& m, Blocks blocks, Output out) const;

 private:
  enum class Kernel { few, many, exact };

  int panel_of(int row) const;
  void fill_exact(int row, const float* x, int first, int count);
  void multiply_few(const Matrix& m, Blocks blocks, Output out) const;
  void multiply_exact(const Matrix& m, Blocks blocks, Output out) const;
  std::size_t scale_count() const;
  Panel panel_at(int row) const;

  const Kernels* kernels_;
  Matrix like_;
  int rows_, filled_rows_, panel_;
  Kernel kernel_;
  Cut cut_{};
  std::int8_t* codes_ = nullptr;
  float* scales_ = nullptr;
  float* sums_ = nullptr;
  std::uint8_t* spilled_ = nullptr;
  float* values_ = nullptr;
};

}  // namespace moesaic
