// A decoder layer for one token of every sequence: two norms, attention, a router and its experts, in one call. Each of
// them is the operation of its own file; what is saved is the way between them, which from Python takes as long as the
// matrices of a layer of small experts.

#pragma once

#include <array>
#include <cstddef>

#include "attention.h"
#include "layer.h"
#include "mask_router.h"
#include "norm.h"
#include "router.h"

namespace moesaic {

struct DecoderLayer {
  int hidden, heads, shared, size;  // size of a head
  Norm attention_norm, experts_norm;
  // queries, keys, values and the output: the first three have the columns, width, group and grid in common
  std::array<Matrix, 4> matrices;
  std::array<Bias, 4> biases;
  Norm query_norm, key_norm;  // no weight: none
  bool joins_heads;           // these norms are of all heads together, else of each
  float scale;                // of the products of queries and keys

  const ExpertLayer* experts;  // nullptr: every step ends before what stands in their place
  LayerWeights weights;
  Router router;
  bool rounds_logits;             // to the dtype of x before anything else
  const MaskRouter* mask_router;  // says which of the chosen experts run; nullptr: all do
};

// Keys or values of a layer, with room for more tokens: those of a head lie one after the other.
struct Room {
  void* data;
  std::ptrdiff_t row, head;  // from row to row and from head to head, in numbers
};

struct DecoderStep {
  Rows x;  // [rows][hidden], bfloat16 or float16
  const void *cosines, *sines;
  bool is_common;  // [rotated] for all rows
  int rotated;
  Room keys, values;         // the new token's go to place `used`
  int used;                  // tokens that are there already
  const std::uint8_t* seen;  // [rows][used + 1]; nullptr: all are
  void* out;                 // [rows][hidden], the sum after the experts; after attention where `normed` is given
  void* normed;              // [rows][hidden], the norm of the sum after attention, with which the step ends; or nullptr
};

// Sums and norms are rounded to the dtype of x where the modules of transformers round them.
void run_decoder_layer(const DecoderLayer& layer, const DecoderStep& step, Run run);

}  // namespace moesaic
