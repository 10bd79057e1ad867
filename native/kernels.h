// The contract between the drivers and the instruction sets.
//
// Every file in `arch/` fills one `Kernels` table. A kernel computes on whole row blocks of 16 rows, reads the packed
// matrix in place (docs/format.md), is single-threaded, allocates nothing and checks nothing: sizes, alignment
// and indices are the business of `bindings.cpp` and `layer.cpp`. A result depends on the arguments alone, never on
// how the row blocks were shared out, so that it is the same for every number of threads.

#pragma once

#include <cstddef>
#include <cstdint>

namespace moesaic {

constexpr int kBlockRows = 16;  // rows of a tile
constexpr int kQuad = 4;        // neighbouring columns that share a 32-bit lane
constexpr int kParts = 4;       // of a stretch of columns; quad q belongs to part q % 4
constexpr int kStretch = 32;    // columns that codes are unpacked for at a time
constexpr int kStretchQuads = kStretch / kQuad;
constexpr int kGroupQuads = 128 / kQuad;  // of the largest group
constexpr int kMostSpills = 8;            // of a group
constexpr int kRowStep = 2;               // `many` works on activation rows in multiples of this

// One packed matrix. The pointers lead into the blob; nothing is copied.
struct Matrix {
  const std::uint16_t* row_scale;  // bfloat16, [16 * blocks]
  const std::uint8_t* parameters;  // [blocks][groups][parameter_bytes]
  const std::uint8_t* codes;       // [blocks][groups][tile_bytes], 64-byte aligned
  int rows, columns, bits, group;  // group: columns that share a scale (32, 64 or 128)
  bool symmetric;                  // no zero codes; zero is the middle of the codes
  int blocks, groups;

  int parameter_bytes() const { return symmetric ? kBlockRows : 2 * kBlockRows; }
  int tile_bytes() const { return 2 * group * bits; }
  int padded_columns() const { return groups * group; }
};

// How the columns of a group of the matrix share scales (docs/decisions/0007-int8-activations.md). For `few`, a stretch of
// columns has four parts, each with a scale of its own. For `many` the group has one scale, and the codes of a few
// quads, those with the largest numbers, may be beyond int8: what is beyond is in spills, further codes to be
// multiplied with the same columns.
struct Cut {
  int stretch;  // 32 or 64 columns, at most a group; 0 for `many`
  int spills;   // of each group, at most kMostSpills; 0 for `few`

  int scales(int group) const { return stretch ? kParts * group / stretch : 1; }
  int codes(int group) const { return group + kQuad * spills; }
};

// Activations in int8: x = scale * code. `panel` rows are interleaved by quads, so that a kernel that works on them
// together walks through memory once:
//   codes   [groups][group / 4 + spills][panel][4]
//   scales  [groups][stretches][panel][4] for `few`, [groups][panel] for `many`
//   sums    [groups][panel]           sum of x over the group, in units of the matrix' zero codes
//   spilled [groups][spills][panel]   the quad of the group that a spill belongs to
// How scales and sums are scaled belongs to the instruction set: only its own `quantize` fills a panel.
struct Panel {
  const std::int8_t* codes;
  const float* scales;
  const float* sums;
  const std::uint8_t* spilled;
  Cut cut;
};

// Row blocks first .. last - 1 of a matrix.
struct Blocks {
  int first, last;
};

// Where results go: the value of row 16 * first + n and activation row t lands at data[t * stride + n].
struct Output {
  float* data;
  std::size_t stride;
};

enum class DType { float32, bfloat16, float16 };
enum class ActivationKind { silu, gelu, gelu_tanh, relu, swiglu_clamped };

struct Activation {
  ActivationKind kind;
  float alpha, limit;  // of swiglu_clamped
};

// One token's attention: keys and values that lie one after the other, and what the query heads that share them found.
struct Keys {
  const void *keys, *values;  // [count][size] and [count][value_size], both of this dtype
  DType dtype;
  const std::uint8_t* seen;  // [count], 0 where a key is not to be seen; nullptr: all are
  int count, size, value_size;
  float scale;  // a score is this times the product of a query and a key
};

constexpr int kKeysAtATime = 16;  // as floats they stay in the first cache for all queries

struct Attended {
  float* values;  // [queries][value_size], sum over the keys of exp(score - top) * value
  float* tops;    // [queries], the largest score; minus infinity where no key was seen
  float* sums;    // [queries], sum over the keys of exp(score - top)
};

struct Kernels {
  const char* name;
  int few_rows;    // most activation rows in one call of `few` and `exact`, at most 4
  int few_pays;    // rows up to which calls of `few` take less time than `many`
  int panel_rows;  // rows of a full panel for `many`, a multiple of kRowStep

  // Quantizes `columns` floats to int8, padded with zeros to `groups` whole groups, for a product with matrices of
  // the width, group and grid of `like`. The pointers are those of one row of a panel: quad q goes to
  // codes + 4 * q * panel, and so on. NaN or infinity anywhere in the columns of a scale makes it NaN.
  void (*quantize)(const Matrix& like, const float* x, int columns, int groups, Cut cut, int panel,
                   std::int8_t* codes, float* scales, float* sums, std::uint8_t* spilled);

  // `rows` <= few_rows activation rows, interleaved with panel = rows: bound by memory, codes are read once and never stored.
  void (*few)(const Matrix&, Panel, int rows, Blocks, Output);

  // Any number of activation rows in panels of panel_rows that follow each other; rows that fill the last panel up to a
  // multiple of kRowStep must hold zeros, and their results are written too. Bound by arithmetic: tiles are unpacked once for
  // all rows.
  void (*many)(const Matrix&, Panel, int rows, Blocks, Output);

  // `rows` <= few_rows float32 activation rows of padded_columns each, at x + t * x_stride.
  void (*exact)(const Matrix&, const float* x, std::size_t x_stride, int rows, Blocks, Output);

  // `count` rows of bfloat16 weights, one after the other, times `rows` float32 activation rows: out[t * count + n].
  void (*dense)(const std::uint16_t* weights, int columns, int count, const float* x, int rows, float* out);

  // out[i] = x[i] * weight[i] / sqrt(mean of the squares of x + epsilon). In place is fine.
  void (*rms_norm)(const float* x, const float* weight, float epsilon, float* out, int count);

  // `count` queries of `keys.size` floats, which came from the dtype of the keys. Fills `found` anew.
  // `scratch` has room for kKeysAtATime keys and values.
  void (*attend)(const float* queries, int count, Keys keys, Attended found, float* scratch);

  // out[i] = activation(gate[i]) * up[i]; without a gate (nullptr) activation(up[i]). In place is fine.
  void (*activate)(Activation, const float* gate, const float* up, float* out, int count);

  void (*to_float)(DType, const void* in, float* out, int count);
  void (*from_float)(DType, const float* in, void* out, int count);

  // Ceilings, for the benchmarks: reads every byte once; does int8 multiply-adds on registers and returns how many.
  std::uint64_t (*read_all)(const std::uint8_t* data, std::size_t bytes);
  std::uint64_t (*dot_products)(std::uint64_t rounds);
};

// The table of one instruction set; nullptr where it was not compiled in.
const Kernels* generic_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* neon_kernels();

// The table in use: MOESAIC_CPU_ISA's if set, else the best one the CPU has. Throws std::runtime_error for a name
// that is unknown or that the CPU lacks.
const Kernels& kernels();

// Whether this build and this CPU can run that instruction set; `names` is nullptr-terminated, best first.
const char* const* known_isas();
bool isa_runs_here(const char* name);

// Switches the table (tests run every one of them in one process); the empty name goes back to the choice above.
void use_isa(const char* name);

}  // namespace moesaic
