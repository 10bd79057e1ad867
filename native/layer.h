// The two operations: a packed matrix times rows, and a whole expert layer. They share the work out among threads;
// the kernels do it. Nothing here checks its arguments: `bindings.cpp` has.

#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "prepared.h"

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
  Rounding first, second;  // of what goes into a layer, and into an expert's second one
  int threads;             // at least 1
};

// Of any float dtype; `data` is nullptr where there is none.
struct Bias {
  const void* data;
  DType dtype;
};

// A matrix, what is added to its product, [rows of w], and where that goes, [rows of x][rows of w] in the dtype of x.
struct LinearPart {
  Matrix w;
  Bias bias;
  void* out;
};

// out = x W^T + bias of one matrix or several of the same columns, width, group and grid: x is made ready once.
void run_linear(const std::vector<LinearPart>& parts, Rows x, Run run);

constexpr int kWidths[] = {1, 2, 3, 4, 8};
constexpr int kStoredWidth = 16;  // experts that are not packed: the caller deals with them

// One entry (gate_up or down) of all experts: a tensor for every width that occurs, in it the experts of that width in
// ascending order, each the blobs of its matrices.
struct Entry {
  int matrices, rows, columns, group;
  bool symmetric;
  std::vector<int> widths;  // of every expert
  std::vector<int> places;  // of every expert in the tensor of its width
  int count(int width) const;
  std::size_t expert_bytes(int width) const;
};

// Where those tensors are, by width.
using Blobs = std::array<const std::uint8_t*, kStoredWidth>;

// What is known of a layer without its weights.
struct ExpertLayer {
  int hidden, intermediate;
  int matrices;  // 2 with a gate, 1 without
  Activation activation;
  Entry gate_up, down;

  int experts() const { return static_cast<int>(down.widths.size()); }
  bool is_packed(int expert) const {
    return gate_up.widths[expert] != kStoredWidth && down.widths[expert] != kStoredWidth;
  }
};

struct LayerWeights {
  Blobs gate_up, down;
  Bias gate_up_bias;  // [experts][matrices * intermediate]
  Bias down_bias;     // [experts][hidden]
};

struct Routes {
  const std::int64_t* index;  // [tokens][top_k]
  const float* weights;       // the same
  int top_k;
};

// out[t] = sum over k of weights[t][k] * expert index[t][k] of x[t]. An index below zero is no expert; one that is not
// packed or beyond the last one must not occur. Weights of experts that nobody asks for are not read.
void run_experts(const ExpertLayer& layer, const LayerWeights& weights, Rows x, Routes routes, void* out, Run run);

// Benchmarks: bytes per second of reading `bytes` bytes `times` times, multiply-adds per second of int8 products.
double read_bandwidth(const std::uint8_t* data, std::size_t bytes, int times, int threads);
double dot_product_rate(std::uint64_t rounds, int threads);

}  // namespace moesaic
