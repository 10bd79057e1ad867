// Matrices that are not packed, bfloat16 as a checkpoint has them, times a few rows: output heads above all, which torch
// reads at half the memory's speed.

#pragma once

#include <cstdint>

#include "layer.h"

namespace moesaic {

// out[t][n] = sum over columns of weights[n][k] x[t][k], in the dtype of x. `weights` is [count][columns].
void run_dense(const std::uint16_t* weights, int count, int columns, Rows x, void* out, int threads);

}  // namespace moesaic
