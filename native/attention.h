// Attention of single tokens: what happens between the matrices. One token of every sequence of a batch, keys and
// values of all tokens so far at hand.

#pragma once

#include <cstddef>

#include "norm.h"

namespace moesaic {

// What is done to queries and keys before they meet.
struct Rotation {
  const void *cosines, *sines;  // [rows][rotated], in the dtype of what is rotated
  bool is_common;               // [rotated] for all rows
  int size;                     // of a head
  int rotated;                  // numbers of it that are rotated, the first ones: number i with number i + rotated / 2
  Norm query_norm, key_norm;    // of each head, before it is rotated; no weight: none
};

// In place, `queries` [rows][heads][size] and `keys` [rows][shared][size].
void run_rotate(DType dtype, int rows, void* queries, int heads, void* keys, int shared, const Rotation& rotation);

struct Attention {
  int rows, heads, shared;  // heads / shared query heads have keys and values in common
  const void* queries;      // [rows][heads][keys.size]
  Keys keys;                // of the first row and shared head; masks of the rows lie one after the other
  // from row to row and from shared head to shared head, in numbers
  std::ptrdiff_t key_row, key_head, value_row, value_head;
};

// out[rows][heads][value_size], zeros where no key was seen. Keys are shared out in pieces of a fixed size, and the
// pieces put together in order, so that the result is the same for every number of threads.
void run_attend(const Attention& attention, void* out, int threads);

}  // namespace moesaic
