// Which experts a token goes to. In torch that is six to twenty operations for a token.

#pragma once

#include <cstdint>

#include "layer.h"

namespace moesaic {

constexpr int kMostExperts = 1 << 12;

// The ways of the families that are known:
//   softmax: shares are the softmax of the logits, the top_k largest are chosen
//   sigmoid: shares are the sigmoids; chosen are the top_k largest of share + choice_bias among the experts of the
//            `kept_groups` groups (of `groups`) whose two best experts add up to most
// Chosen shares are then divided by their sum (`normalises`) and multiplied with `scale`.
struct Router {
  const std::uint16_t* weight;  // [experts][hidden] bfloat16
  Bias logit_bias;              // [experts]
  const float* choice_bias;     // [experts], nullptr: none
  int experts, hidden, top_k;
  bool sigmoid, normalises;
  int groups, kept_groups;
  float scale;
};

// Fills logits [rows][experts] of the dtype `logits_dtype`, to which they are rounded before anything else, and for
// every token its experts, best first, with their shares. Of equals the first expert wins.
void run_router(const Router& router, Rows x, void* logits, DType logits_dtype, std::int64_t* index, float* shares,
                int threads);

}  // namespace moesaic
