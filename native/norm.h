// RMSNorm of rows, as models have it between their matrices. In torch that is six operations.

#pragma once

#include "layer.h"

namespace moesaic {

// The weight of a norm, [columns] of any float dtype; `offset` is added to it (some families store weight - 1).
struct Norm {
  const void* weight;
  DType dtype;
  float epsilon, offset;
};

// `norm.weight` plus its offset, `count` floats.
void norm_weight(const Norm& norm, float* out, int count);

// out = x / sqrt(mean of squares + epsilon) * (weight + offset), row by row, in the dtype of x.
void run_rms_norm(Rows x, int columns, const Norm& norm, void* out, int threads);

}  // namespace moesaic
