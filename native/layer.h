// The two operations: a packed matrix times rows, and a whole expert layer. They share the work out among threads;
// the kernels do it. Nothing here checks its arguments: `bindings.cpp` has.

#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace moesaic {

// Sizes of the regions of a packed matrix (docs/format.md), as src/moesaic/packing/layout.py has them.
std::size_t blob_bytes(int rows, int columns, int bits, int group, bool symmetric);

// The matrix that lies in `blob`, blob_bytes long. One-bit matrices are symmetric whatever is asked for.
Matrix matrix_in(const std::uint8_t* blob, int rows, int columns, int bits, int group, bool symmetric);

struct Rows {
  const void* data;  // [rows][columns]
  DType dtype;
  int rows;
};

struct Run {
  bool exact;   // float32 activations instead of int8
  int threads;  // at least 1
};

// out = x W^T + bias, in the dtype of x. `bias` is [rows of W] or nullptr.
void run_linear(const Matrix& w, Rows x, const float* bias, void* out, Run run);

struct Expert {
  Matrix gate_up[2];  // gate and up, or up alone
  Matrix down;
};

struct ExpertLayer {
  int hidden, intermediate;
  int matrices;  // 2 with a gate, 1 without
  Activation activation;
  const float* gate_up_bias;  // [experts][matrices * intermediate] or nullptr
  const float* down_bias;     // [experts][hidden] or nullptr
  std::vector<Expert> experts;
};

// out[t] = sum over k of weights[t][k] * expert index[t][k] of x[t]; an index outside the layer's experts adds nothing.
void run_experts(const ExpertLayer& layer, Rows x, const std::int64_t* index, const float* weights, int top_k,
                 void* out, Run run);

// Benchmarks: bytes per second of reading `bytes` bytes `times` times, multiply-adds per second of int8 products.
double read_bandwidth(const std::uint8_t* data, std::size_t bytes, int times, int threads);
double dot_product_rate(std::uint64_t rounds, int threads);

}  // namespace moesaic
