// What OTP decides at run time (src/moesaic/prune/otp.py has the formulas, and is the reference): which of a token's
// chosen experts run, and with which weights. In torch that is fifty small operations for a token.

#pragma once

#include <cstdint>

#include "layer.h"

namespace moesaic {

// The state of one layer. Row-major float32; `inner` is [2 width][width + places].
struct MaskRouter {
  int hidden, width, places, experts, masks;
  const float* candidates;          // [masks][places], 0 or 1; the last one runs all places
  const float *project;             // [width][hidden]
  const float *inner, *inner_bias;  // and [2 width]
  const float* outer;               // [masks - 1][2 width]
  const float *slope, *bias;        // [masks - 1]
  const float *table, *prefer;      // [places][experts][2 width], [places][experts]; nullptr where experts are not seen
  float cost;
  bool sees_hidden, sees_weights;
};

constexpr int kMostPlaces = 64;

// For every token: its places by weight, largest first, with the expert -1 and the weight 0 where one does not run.
// `routes.index` must be in 0 .. experts - 1, at most kMostPlaces a token.
void run_mask_router(const MaskRouter& router, Rows x, Routes routes, std::int64_t* index, float* weights, int threads);

}  // namespace moesaic
