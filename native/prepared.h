// Activation rows made ready for the kernels: quantized into panels, or padded floats. Knows which kernel to call.

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

class Prepared {
 public:
  // For products of `rows` activation rows with matrices of the shape and grid of `like`.
  Prepared(const Kernels& kernels, const Matrix& like, int rows, bool exact);

  // Bytes needed, and where they are. Kept apart so that one buffer can hold many of these.
  std::size_t bytes() const;
  void place(std::byte* memory);

  int rows() const { return rows_; }
  // Rows that `fill` must be called for: some kernels want rows of zeros after the real ones.
  int filled_rows() const { return filled_rows_; }

  // Columns first .. first + count - 1 of a row, `first` at the start of a group, `count` whole groups or up to the last
  // column. Zeros for x = nullptr.
  void fill(int row, const float* x, int first, int count);

  // Row blocks of `m` times all rows. `out` has room for filled_rows() rows.
  void multiply(const Matrix& m, Blocks blocks, Output out) const;

 private:
  enum class Way { few, many, exact };

  int panel_of(int row) const;
  int parts() const { return way_ == Way::few ? kParts : 1; }
  void multiply_few(const Matrix& m, Blocks blocks, Output out) const;
  void multiply_exact(const Matrix& m, Blocks blocks, Output out) const;
  std::size_t scale_count() const;

  const Kernels* kernels_;
  Matrix like_;
  int rows_, filled_rows_, panel_;
  Way way_;
  std::int8_t* codes_ = nullptr;
  float* scales_ = nullptr;
  float* sums_ = nullptr;
  float* values_ = nullptr;
};

}  // namespace moesaic
