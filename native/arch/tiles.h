// The kernels on packed matrices, written once over a vector type `V`. Each file of `arch/` says what its vectors are.
//
// V holds `lanes` rows of a block: one 32-bit lane a row, in it the four columns of a quad.
//   Codes        unsigned bytes, 4 x lanes; load, store, keep<mask>, down<shift>, merge, column
//   Floats       float32 x lanes; load, store, fill, from_bytes, add, mul, fma (ab + c), fnma (c - ab)
//   Ints         int32 x lanes; sum, floats
//   narrow       int32 to int8; the nearest one where it does not fit
//   Dot<bits>    an accumulator `Acc` of products of quads: start, add, and in the end value (Floats), scaled (value *
//                scale) or widen (Ints). `magic` is what start puts below the products. It holds numbers up to `room`
//                in magnitude, each a sum over `columns` of the columns of a quad, and in `many` over `span` quads
//                of the group at most.
//   keep_alive   an empty statement that changes Ints or Floats in a register, for all the compiler knows
//   whole_bytes  whether add takes codes of up to 255; else up to 15, and Dot<8> looks after 8 bits itself
//   units        vectors of rows that `many` multiplies together
//   keeps_totals whether there are registers enough for what `many` adds up over groups
//   few_units    the same for `few` with a single activation row
//   few_rows, few_pays, panel_rows   as in the table
//   few_together<bits>               activation rows that `few` works on at the same time, few_rows or 1
//   wide         floats of the vectors that activations are quantized in, 4 or 8
//
// Everything is in an unnamed namespace: the files are compiled for different instruction sets, and a function
// shared by the linker could end up with instructions that the CPU lacks.

#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "../kernels.h"

#define MOESAIC_INLINE inline __attribute__((always_inline))
#define MOESAIC_INLINE_LAMBDA __attribute__((always_inline))  // after a lambda's parameters

namespace moesaic {
namespace {

constexpr int kUnlimited = 0x7FFFFFFF;  // as `room`

template <int value>
using Constant = std::integral_constant<int, value>;

template <class Body, int... values>
MOESAIC_INLINE void unrolled_over(Body&& body, std::integer_sequence<int, values...>) {
  (body(Constant<values>{}), ...);
}

// body(Constant<0>), ..., body(Constant<count - 1>). Arrays that are only ever indexed so stay in registers: with a
// running index GCC keeps them in memory, even where it unrolls the loop.
template <int count, class Body>
MOESAIC_INLINE void unrolled(Body&& body) {
  unrolled_over(body, std::make_integer_sequence<int, count>{});
}

// body(Constant<value>) for the value out of `values` that equals `wanted`
template <int... values, class Body>
MOESAIC_INLINE void chosen(int wanted, Body&& body) {
  (void)((wanted == values ? (body(Constant<values>{}), true) : false) || ...);
}

// ---------------------------------------------------------------------------------------------------------------------
// From planes to quads
//
// Shifts cost as much as products do, so where possible codes are handed out where they lie in their bytes: as
// code << weight, the same weight for all quads of a part. The scale of the part takes it back. `plain` asks for
// codes without weights.

template <class V, int bits, bool plain>
constexpr int weight_shift(int part) {
  if (plain || bits == 8) return 0;
  if (bits == 1) return part;
  if (bits == 2) return V::whole_bytes ? 2 * part : 2 * (part % 2);
  if (bits == 3) return V::whole_bytes ? 2 * (part < 3 ? part : 2) : 0;
  return V::whole_bytes ? 4 * (part % 2) : 0;
}

// Field s (of width p) of a vector, as code << weight.
template <class V, int p, int s, int weight>
MOESAIC_INLINE typename V::Codes field(typename V::Codes codes) {
  return V::template keep<((1 << p) - 1) << weight>(V::template down<s * p - weight>(codes));
}

// Three bits: field s of a vector of low bits, with field 4 half + s of a vector of high bits.
template <class V, int half, int s, int weight>
MOESAIC_INLINE typename V::Codes field3(typename V::Codes low, typename V::Codes high) {
  return V::template merge<3 << weight, 4 << weight>(V::template down<2 * s - weight>(low),
                                                     V::template down<4 * half + s - 2 - weight>(high));
}

// Calls take(i, part, codes) for the quads of a stretch of 32 columns, number `stretch` of a group, of `units` tiles that
// are gone through together; codes[u] belongs to tile u; i and part, i % 4, are compile-time constants. A tile is
// given by the first byte of the wanted lanes; its vectors are 64 bytes apart. `group` may be a Constant or an int.
template <class V, int bits, bool plain, int units, class Group, class Take>
MOESAIC_INLINE void for_each_quad(const std::uint8_t* const (&tiles)[units], Group group, int stretch, Take&& take) {
  typename V::Codes codes[units];
  if constexpr (bits == 3) {
    typename V::Codes highs[units];
    unrolled<units>([&](auto u) { highs[u] = V::load(tiles[u] + 4 * group + 64 * stretch); });
    unrolled<kStretchQuads>([&](auto i) {
      constexpr int half = i / 4, s = i % 4;
      unrolled<units>([&](auto u) {
        const auto low = V::load(tiles[u] + 64 * (2 * stretch + half));
        codes[u] = field3<V, half, s, weight_shift<V, bits, plain>(s)>(low, highs[u]);
      });
      take(i, Constant<s>{}, codes);
    });
  } else {
    constexpr int fields = 8 / bits;  // quads in a vector
    unrolled<kStretchQuads>([&](auto i) {
      constexpr int part = i % kParts;
      unrolled<units>([&](auto u) {
        const auto packed = V::load(tiles[u] + 64 * (bits * stretch + i / fields));
        codes[u] = field<V, bits, i % fields, weight_shift<V, bits, plain>(part)>(packed);
      });
      take(i, Constant<part>{}, codes);
    });
  }
}

// What a matrix' zero codes are multiplied with; the zero itself on a symmetric grid.
inline float zero_factor(const Matrix& m) {
  const float top = static_cast<float>((1 << m.bits) - 1);
  return m.symmetric ? top / 2 : top / 255;
}

// `sum` is in units of zero codes. Returns value - zero * sum of x.
template <class V>
MOESAIC_INLINE typename V::Floats less_zero(typename V::Floats value, const std::uint8_t* zero_codes, float sum) {
  if (!zero_codes) return V::add(value, V::fill(-sum));
  return V::fnma(V::from_bytes(zero_codes), V::fill(sum), value);
}

// ---------------------------------------------------------------------------------------------------------------------
// few: stream the codes once

constexpr int kPrefetchAhead = 3072;  // bytes; the hardware's own prefetching stops at the end of a page

// Where the vectors of rows that are worked on together begin: `units` vectors from lane `lane` of a block on.
template <class V>
struct Unit {
  Unit(int block, int lane, int number)
      : block(block + (lane + number * V::lanes) / kBlockRows), lane((lane + number * V::lanes) % kBlockRows) {}
  int block, lane;
};

// One group of `units` vectors of rows, times `rows` activation rows out of `panel`; `x` is what they have for this group.
template <class V, int bits, int rows, int units, int panel, class Group, class Stretch>
MOESAIC_INLINE void few_tiles(Group group, Stretch stretch, const std::uint8_t* const (&tiles)[units],
                              const std::uint8_t* const (&parameters)[units], bool symmetric, const Panel& x,
                              typename V::Floats (&total)[units][rows]) {
  using Dot = typename V::template Dot<bits>;
  constexpr int chains = rows == 1 ? 4 : rows == 2 ? 2 : 1;  // of sums, so that they need not wait for each other
  typename V::Floats value[chains][units][rows];
  unrolled<chains>([&](auto c) {
    unrolled<units>([&](auto u) { unrolled<rows>([&](auto t) { value[c][u][t] = V::fill(0); }); });
  });
  for (int i = 0; i < group / stretch; ++i) {
    typename Dot::Acc dots[kParts][units][rows];
    unrolled<kParts>([&](auto s) {
      unrolled<units>([&](auto u) { unrolled<rows>([&](auto t) { dots[s][u][t] = Dot::start(); }); });
    });
    unrolled<stretch / kStretch>([&](auto piece) {
      const int number = i * (stretch / kStretch) + piece;
      const std::int8_t* quads = x.codes + kStretch * panel * number;
      for_each_quad<V, bits, false>(tiles, group, number, [&](auto q, auto part, const typename V::Codes(&codes)[units]) {
        unrolled<rows>([&](auto t) {
          unrolled<units>([&](auto u) { Dot::add(dots[part][u][t], codes[u], quads + kQuad * (q * panel + t)); });
        });
      });
    });
    const float* scales = x.scales + kParts * panel * i;
    unrolled<units>([&](auto u) {
      unrolled<rows>([&](auto t) {
        unrolled<kParts>([&](auto s) {
          auto& sum = value[s % chains][u][t];
          sum = V::fma(Dot::value(dots[s][u][t]), V::fill(scales[kParts * t + s]), sum);
        });
      });
    });
  }
  unrolled<units>([&](auto u) {
    const auto scale = V::from_bytes(parameters[u]);
    unrolled<rows>([&](auto t) {
      auto sum = value[0][u][t];
      if constexpr (chains == 2) sum = V::add(sum, value[1][u][t]);
      if constexpr (chains == 4) sum = V::add(V::add(sum, value[1][u][t]), V::add(value[2][u][t], value[3][u][t]));
      const auto centred = less_zero<V>(sum, symmetric ? nullptr : parameters[u] + kBlockRows, x.sums[t]);
      total[u][t] = V::fma(centred, scale, total[u][t]);
    });
  });
}

// All groups of `units` vectors of rows that begin at a lane of a block.
template <class V, int bits, int rows, int units, int panel, class Group, class Stretch>
void few_units(Group group, Stretch stretch, const Matrix& m, Panel x, int block, int lane, float* results, std::size_t stride) {
  const std::uint8_t *tiles[units], *parameters[units];
  typename V::Floats total[units][rows];
  for (int u = 0; u < units; ++u) {
    const Unit<V> unit(block, lane, u);
    const std::ptrdiff_t first = std::ptrdiff_t{unit.block} * m.groups;
    tiles[u] = m.codes + first * m.tile_bytes() + kQuad * unit.lane;
    parameters[u] = m.parameters + first * m.parameter_bytes() + unit.lane;
    for (auto& row : total[u]) row = V::fill(0);
  }
  for (int j = 0; j < m.groups; ++j) {
    for (int u = 0; u < units; ++u) {
      if (Unit<V>(0, 0, u).lane > 0 || lane > 0) continue;  // the block's first unit fetches for all
      for (int line = 0; line < 2 * group * bits; line += 64) __builtin_prefetch(tiles[u] + kPrefetchAhead + line);
      __builtin_prefetch(parameters[u] + 8 * m.parameter_bytes());
    }
    few_tiles<V, bits, rows, units, panel>(group, stretch, tiles, parameters, m.symmetric, x, total);
    x.codes += group * panel;
    x.scales += kParts * (group / stretch) * panel;
    x.sums += panel;
    for (int u = 0; u < units; ++u) {
      tiles[u] += 2 * group * bits;
      parameters[u] += m.parameter_bytes();
    }
  }
  for (int u = 0; u < units; ++u) {
    const Unit<V> unit(block, lane, u);
    const auto scale = V::from_bfloat16(m.row_scale + kBlockRows * unit.block + unit.lane);
    float* at = results + lane + u * V::lanes;
    for (int t = 0; t < rows; ++t) V::store(at + t * stride, V::mul(scale, total[u][t]));
  }
}

template <class V, int bits, int rows, int units, int panel, class Group, class Stretch>
void few_blocks(Group group, Stretch stretch, const Matrix& m, Panel x, Blocks blocks, Output out) {
  constexpr int together = units * V::lanes < kBlockRows ? 1 : units * V::lanes / kBlockRows;
  constexpr int step = units * V::lanes < kBlockRows ? units * V::lanes : kBlockRows;
  for (int block = blocks.first; block + together <= blocks.last; block += together) {
    float* results = out.data + kBlockRows * (block - blocks.first);
    for (int lane = 0; lane < kBlockRows; lane += step) {
      few_units<V, bits, rows, units, panel>(group, stretch, m, x, block, lane, results, out.stride);
    }
  }
  if constexpr (together > 1) {
    const int left = (blocks.last - blocks.first) % together;
    const Output rest{out.data + kBlockRows * (blocks.last - left - blocks.first), out.stride};
    few_blocks<V, bits, rows, kBlockRows / V::lanes, panel>(group, stretch, m, x, {blocks.last - left, blocks.last}, rest);
  }
}

// One row, the case that matters most, gets code for every group size, and several vectors of rows at once: more sums
// that do not wait for each other, and fewer loads of activations.
template <class V, int bits, int panel, class Stretch>
void few_of_one(Stretch stretch, const Matrix& m, Panel x, Blocks blocks, Output out) {
  chosen<32, 64, 128>(m.group, [&](auto group) {
    if constexpr (stretch <= group) few_blocks<V, bits, 1, V::few_units, panel>(group, stretch, m, x, blocks, out);
  });
}

template <class V>
void few(const Matrix& m, Panel x, int rows, Blocks blocks, Output out) {
  chosen<1, 2, 3, 4, 8>(m.bits, [&](auto bits) {
    chosen<32, 64>(x.cut.stretch, [&](auto stretch) {
      if (rows == 1) few_of_one<V, bits, 1>(stretch, m, x, blocks, out);
      unrolled<V::few_rows - 1>([&](auto t) {
        constexpr int panel = t + 2;
        if (rows != panel) return;
        if constexpr (V::template few_together<bits> > 1) {
          few_blocks<V, bits, panel, 1, panel>(m.group, stretch, m, x, blocks, out);
          return;
        }
        for (int block = blocks.first; block < blocks.last; ++block) {  // from memory once, then from the cache
          for (int row = 0; row < panel; ++row) {
            const Panel own{x.codes + kQuad * row, x.scales + kParts * row, x.sums + row, x.spilled, x.cut};
            float* results = out.data + row * out.stride + kBlockRows * (block - blocks.first);
            few_of_one<V, bits, panel>(stretch, m, own, {block, block + 1}, {results, out.stride});
          }
        }
      });
    });
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// many: unpack a stretch of columns once, multiply all rows with it

constexpr int kChunk = 1024;  // columns; the unpacked codes of a row block are 16 KB, and one or two stay in the first cache

// The unpacked columns of `count` row blocks: codes [quad][count][64], factors [group][16 count].
template <int count>
struct Unpacked {
  alignas(64) std::uint8_t codes[count * kBlockRows * kChunk];
  alignas(64) float scale[kChunk / 32][count * kBlockRows];
  alignas(64) float scaled_zero[kChunk / 32][count * kBlockRows];
};

template <class V, int bits, int count>
void unpack(const Matrix& m, int block, int first_group, int groups, Unpacked<count>& to) {
  for (int b = 0; b < count; ++b) {
    const std::ptrdiff_t at = std::ptrdiff_t{block + b} * m.groups + first_group;
    const std::uint8_t* tile = m.codes + at * m.tile_bytes();
    const std::uint8_t* parameters = m.parameters + at * m.parameter_bytes();
    for (int j = 0; j < groups; ++j, tile += m.tile_bytes(), parameters += m.parameter_bytes()) {
      for (int lane = 0; lane < kBlockRows; lane += V::lanes) {
        std::uint8_t* codes = to.codes + kBlockRows * m.group * count * j + 64 * b + kQuad * lane;
        const std::uint8_t* const tiles[] = {tile + kQuad * lane};
        for (int i = 0; i < m.group / kStretch; ++i) {
          for_each_quad<V, bits, true>(tiles, m.group, i, [&](auto q, auto, const typename V::Codes(&value)[1]) {
            V::store(codes + 64 * count * (kStretchQuads * i + q), value[0]);
          });
        }
        const auto scale = V::from_bytes(parameters + lane);
        const auto zero = m.symmetric ? V::fill(1) : V::from_bytes(parameters + kBlockRows + lane);
        V::store(&to.scale[j][kBlockRows * b + lane], scale);
        V::store(&to.scaled_zero[j][kBlockRows * b + lane], V::mul(scale, zero));
      }
    }
  }
}

// Numbers to be broadcast from memory: GCC would take them out of a register, with shuffles that products have to wait for.
template <int count>
MOESAIC_INLINE void from_memory(float (&numbers)[count]) {
  __asm__ volatile("" : "+m"(numbers));
}

// What the rows of a panel have for one group.
template <class V>
struct TileRows {
  TileRows(Panel x, int group, std::ptrdiff_t at)
      : quads(x.codes + at * x.cut.codes(group)),
        scales(x.scales + at),
        sums(x.sums + at),
        spilled(x.spilled + at * x.cut.spills),
        count(group / kQuad),
        spills(x.cut.spills) {}

  void next_group() {
    quads += kQuad * (count + spills) * V::panel_rows;
    scales += V::panel_rows, sums += V::panel_rows;
    spilled += spills * V::panel_rows;
  }

  const std::int8_t* quads;
  const float *scales, *sums;
  const std::uint8_t* spilled;
  int count, spills;  // quads, and what spilled from some of them
};

// Codes and parameters that will be unpacked after the present ones. They are fetched while these are multiplied:
// waiting for them took three times as long as unpacking them.
template <int count>
struct Coming {
  const std::uint8_t *codes[count] = {}, *parameters[count] = {};
  int code_bytes = 0, parameter_bytes = 0;  // of a row block

  Coming(const Matrix& m, int block, int first_group, int groups) {
    if (block + count > m.blocks) return;
    code_bytes = groups * m.tile_bytes(), parameter_bytes = groups * m.parameter_bytes();
    for (int b = 0; b < count; ++b) {
      const std::ptrdiff_t at = std::ptrdiff_t{block + b} * m.groups + first_group;
      codes[b] = m.codes + at * m.tile_bytes();
      parameters[b] = m.parameters + at * m.parameter_bytes();
    }
  }

  // The part that falls to rows row .. row + some - 1 out of `rows`. Inlined, or GCC would find a function without effects.
  MOESAIC_INLINE void fetch(int row, int rows, int some) const {
    const auto lines = [&](const std::uint8_t* from, int bytes) MOESAIC_INLINE_LAMBDA {
      const int first = bytes * std::int64_t{row} / rows / 64 * 64;
      const int last = row + some < rows ? bytes * std::int64_t{row + some} / rows / 64 * 64 : bytes;
      for (int line = first; line < last; line += 64) __builtin_prefetch(from + line, 0, 2);
    };
    for (int b = 0; b < count; ++b) lines(codes[b], code_bytes), lines(parameters[b], parameter_bytes);
  }
};

// Integer products of `units` vectors of rows with `rows` activation rows: `count` quads from the given ones on.
template <class V, class Dot, int units, int rows>
MOESAIC_INLINE void multiply(const std::uint8_t* codes, const std::int8_t* quads, int count,
                             typename Dot::Acc (&dots)[rows][units]) {
  unrolled<rows>([&](auto t) MOESAIC_INLINE_LAMBDA {
    unrolled<units>([&](auto u) MOESAIC_INLINE_LAMBDA { dots[t][u] = Dot::start(); });
  });
  for (int q = 0; q < count; ++q) {
    typename V::Codes unit[units];
    unrolled<units>([&](auto u) MOESAIC_INLINE_LAMBDA { unit[u] = V::load(codes + kQuad * V::lanes * (q * units + u)); });
    unrolled<rows>([&](auto t) MOESAIC_INLINE_LAMBDA {
      unrolled<units>([&](auto u) MOESAIC_INLINE_LAMBDA {
        Dot::add(dots[t][u], unit[u], quads + kQuad * (q * V::panel_rows + t));
        V::keep_alive(dots[t][u]);  // one register for each: GCC would keep a copy in memory up to date
      });
    });
  }
}

// Adds those of the spills of a group, each with the quad that it belongs to.
template <class V, class Dot, int units, int rows>
MOESAIC_INLINE void add_spills(const std::uint8_t* codes, const TileRows<V>& x, typename Dot::Acc (&dots)[rows][units]) {
  for (int e = 0; e < x.spills; ++e) {
    unrolled<rows>([&](auto t) MOESAIC_INLINE_LAMBDA {
      const std::uint8_t* from = codes + kQuad * V::lanes * units * x.spilled[e * V::panel_rows + t];
      unrolled<units>([&](auto u) MOESAIC_INLINE_LAMBDA {
        Dot::add(dots[t][u], V::load(from + kQuad * V::lanes * u), x.quads + kQuad * ((x.count + e) * V::panel_rows + t));
        V::keep_alive(dots[t][u]);
      });
    });
  }
}

// Products of a group as floats, times the activations' scales: ready() and then take(t, u, value).
template <class V, class Dot, int units, int rows, class Ready, class Take>
MOESAIC_INLINE void group_product(const std::uint8_t* codes, const TileRows<V>& x, Ready&& ready, Take&& take) {
  const auto take_all = [&](auto&& value_of) MOESAIC_INLINE_LAMBDA {
    ready();
    unrolled<rows>([&](auto t) MOESAIC_INLINE_LAMBDA {
      unrolled<units>([&](auto u) MOESAIC_INLINE_LAMBDA { take(t, u, value_of(t, u)); });
    });
  };
  typename Dot::Acc dots[rows][units];
  if (Dot::span >= kGroupQuads || x.count <= Dot::span) {
    alignas(64) float below[V::panel_rows];  // what the accumulators' start amounts to
    for (int t = 0; t < rows; ++t) below[t] = -Dot::magic * x.scales[t];
    if constexpr (Dot::magic != 0) from_memory(below);
    multiply<V, Dot, units, rows>(codes, x.quads, x.count, dots);
    add_spills<V, Dot, units, rows>(codes, x, dots);
    take_all([&](auto t, auto u) MOESAIC_INLINE_LAMBDA { return Dot::scaled(dots[t][u], x.scales[t], below[t]); });
  } else if constexpr (Dot::span < kGroupQuads) {
    typename V::Ints wide[rows][units] = {};
    for (int q = 0; q < x.count; q += Dot::span) {
      multiply<V, Dot, units, rows>(codes + kQuad * V::lanes * units * q, x.quads + kQuad * V::panel_rows * q,
                                    x.count - q < Dot::span ? x.count - q : Dot::span, dots);
      unrolled<rows>([&](auto t) MOESAIC_INLINE_LAMBDA {
        unrolled<units>([&](auto u) MOESAIC_INLINE_LAMBDA { wide[t][u] = V::sum(wide[t][u], Dot::widen(dots[t][u])); });
      });
    }
    multiply<V, Dot, units, rows>(codes, x.quads, 0, dots);
    add_spills<V, Dot, units, rows>(codes, x, dots);
    take_all([&](auto t, auto u) MOESAIC_INLINE_LAMBDA {
      return V::mul(V::floats(V::sum(wide[t][u], Dot::widen(dots[t][u]))), V::fill(x.scales[t]));
    });
  }
}

// Adds the share of the groups of a chunk to the results of `rows` rows of a panel.
template <class V, class Dot, int count, int rows>
void many_panel(const Matrix& m, const Unpacked<count>& w, int groups, TileRows<V> x, Output out) {
  constexpr int units = count * kBlockRows / V::lanes;
  typename V::Floats totals[rows][units];
  const auto at = [&](auto t, auto u) MOESAIC_INLINE_LAMBDA { return out.data + t * out.stride + u * V::lanes; };
  const auto with_all = [&](auto&& body) MOESAIC_INLINE_LAMBDA {
    unrolled<rows>([&](auto t) MOESAIC_INLINE_LAMBDA { unrolled<units>([&](auto u) MOESAIC_INLINE_LAMBDA { body(t, u); }); });
  };
  if constexpr (V::keeps_totals) with_all([&](auto t, auto u) MOESAIC_INLINE_LAMBDA { totals[t][u] = V::load(at(t, u)); });
  for (int j = 0; j < groups; ++j) {
    typename V::Floats scales[units], zeros[units];  // in registers: they are wanted for every row
    const auto ready = [&] MOESAIC_INLINE_LAMBDA {
      unrolled<units>([&](auto u) MOESAIC_INLINE_LAMBDA {
        scales[u] = V::load(w.scale[j] + u * V::lanes), zeros[u] = V::load(w.scaled_zero[j] + u * V::lanes);
        V::keep_alive(scales[u]), V::keep_alive(zeros[u]);
      });
    };
    const std::uint8_t* codes = w.codes + kBlockRows * count * m.group * j;
    group_product<V, Dot, units, rows>(codes, x, ready, [&](auto t, auto u, typename V::Floats value) MOESAIC_INLINE_LAMBDA {
      const auto with_share = [&](typename V::Floats total) MOESAIC_INLINE_LAMBDA {
        return V::fma(value, scales[u], V::fnma(zeros[u], V::fill(x.sums[t]), total));
      };
      if constexpr (V::keeps_totals) {
        totals[t][u] = with_share(totals[t][u]);
        V::keep_alive(totals[t][u]);
      } else {
        V::store(at(t, u), with_share(V::load(at(t, u))));
      }
    });
    x.next_group();
  }
  if constexpr (V::keeps_totals) with_all([&](auto t, auto u) MOESAIC_INLINE_LAMBDA { V::store(at(t, u), totals[t][u]); });
}

// All rows times the unpacked groups first_group .. first_group + groups - 1. Fetches what will be unpacked next.
template <class V, class Dot, int count>
void many_chunk(const Matrix& m, const Unpacked<count>& w, int first_group, int groups, const Coming<count>& coming, Panel x,
                int rows, Output out) {
  for (int row = 0; row < rows; row += V::panel_rows) {
    coming.fetch(row, rows, V::panel_rows);
    const std::ptrdiff_t at = std::ptrdiff_t{row} * m.groups + first_group * V::panel_rows;
    const TileRows<V> panel(x, m.group, at);
    const Output results{out.data + row * out.stride, out.stride};
    const int here = rows - row < V::panel_rows ? rows - row : V::panel_rows;
    unrolled<V::panel_rows / kRowStep>([&](auto step) {
      constexpr int tile_rows = kRowStep * (step + 1);
      if (here <= tile_rows && here > tile_rows - kRowStep) {
        many_panel<V, Dot, count, tile_rows>(m, w, groups, panel, results);
      }
    });
  }
}

template <class V, int bits, int count>
void many_blocks(const Matrix& m, Panel x, int rows, int block, Output out) {
  const int results = (rows + kRowStep - 1) / kRowStep * kRowStep;
  for (int t = 0; t < results; ++t) std::memset(out.data + t * out.stride, 0, sizeof(float) * kBlockRows * count);
  Unpacked<count> w;
  const int step = kChunk / m.group;
  for (int j = 0; j < m.groups; j += step) {
    const int groups = m.groups - j < step ? m.groups - j : step;
    unpack<V, bits, count>(m, block, j, groups, w);
    const bool is_last = j + step >= m.groups;
    const int next = is_last ? 0 : j + step;
    const Coming<count> coming(m, is_last ? block + count : block, next, m.groups - next < step ? m.groups - next : step);
    many_chunk<V, typename V::template Dot<bits>, count>(m, w, j, groups, coming, x, rows, out);
  }
  for (int n = 0; n < kBlockRows * count; n += V::lanes) {
    const auto scale = V::from_bfloat16(m.row_scale + kBlockRows * block + n);
    for (int t = 0; t < results; ++t) {
      float* at = out.data + t * out.stride + n;
      V::store(at, V::mul(scale, V::load(at)));
    }
  }
}

template <class V>
void many(const Matrix& m, Panel x, int rows, Blocks blocks, Output out) {
  constexpr int together = V::units * V::lanes < kBlockRows ? 1 : V::units * V::lanes / kBlockRows;
  chosen<1, 2, 3, 4, 8>(m.bits, [&](auto bits) {
    int block = blocks.first;
    const auto results = [&] { return Output{out.data + kBlockRows * (block - blocks.first), out.stride}; };
    for (; blocks.last - block >= together; block += together) {
      many_blocks<V, bits, together>(m, x, rows, block, results());
    }
    for (; block < blocks.last; ++block) many_blocks<V, bits, 1>(m, x, rows, block, results());
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// exact: float32 activations

template <class V, int bits, int rows>
MOESAIC_INLINE void exact_tile(int group, const std::uint8_t* tile, typename V::Floats scale, typename V::Floats zero,
                               const float* x, std::size_t x_stride, typename V::Floats (&total)[rows]) {
  typename V::Floats sum[rows];
  for (auto& row : sum) row = V::fill(0);
  const std::uint8_t* const tiles[] = {tile};
  for (int i = 0; i < group / kStretch; ++i) {
    for_each_quad<V, bits, true>(tiles, group, i, [&](auto q, auto, const typename V::Codes(&codes)[1]) {
      const float* from = x + kStretch * i + kQuad * q;
      unrolled<kQuad>([&](auto c) {
        const auto weight = V::fnma(V::fill(1), zero, V::template column<c>(codes[0]));
        unrolled<rows>([&](auto t) { sum[t] = V::fma(weight, V::fill(from[t * x_stride + c]), sum[t]); });
      });
    });
  }
  unrolled<rows>([&](auto t) { total[t] = V::fma(scale, sum[t], total[t]); });
}

template <class V, int bits, int rows>
void exact_blocks(const Matrix& m, const float* x, std::size_t x_stride, Blocks blocks, Output out) {
  const float factor = zero_factor(m);
  for (int block = blocks.first; block < blocks.last; ++block) {
    for (int lane = 0; lane < kBlockRows; lane += V::lanes) {
      typename V::Floats total[rows];
      for (auto& row : total) row = V::fill(0);
      for (int j = 0; j < m.groups; ++j) {
        const std::ptrdiff_t at = std::ptrdiff_t{block} * m.groups + j;
        const std::uint8_t* parameters = m.parameters + at * m.parameter_bytes() + lane;
        const auto zero = m.symmetric ? V::fill(factor) : V::mul(V::fill(factor), V::from_bytes(parameters + kBlockRows));
        exact_tile<V, bits, rows>(m.group, m.codes + at * m.tile_bytes() + kQuad * lane, V::from_bytes(parameters), zero,
                                  x + std::ptrdiff_t{j} * m.group, x_stride, total);
      }
      const auto scale = V::from_bfloat16(m.row_scale + kBlockRows * block + lane);
      float* results = out.data + kBlockRows * (block - blocks.first) + lane;
      unrolled<rows>([&](auto t) { V::store(results + t * out.stride, V::mul(scale, total[t])); });
    }
  }
}

template <class V>
void exact(const Matrix& m, const float* x, std::size_t x_stride, int rows, Blocks blocks, Output out) {
  chosen<1, 2, 3, 4, 8>(m.bits, [&](auto bits) {
    unrolled<V::few_rows>([&](auto t) {
      if (rows == t + 1) exact_blocks<V, bits, t + 1>(m, x, x_stride, blocks, out);
    });
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Ceilings

constexpr int kReadAhead = 8192;  // bytes; nearer by was slower, and a ceiling has to be the fastest

template <class V>
std::uint64_t read_all(const std::uint8_t* data, std::size_t bytes) {
  constexpr int step = kQuad * V::lanes, streams = 8;
  typename V::Codes seen[streams];
  for (auto& part : seen) part = V::load(data);
  for (std::size_t at = 0; at + streams * step <= bytes; at += streams * step) {
    __builtin_prefetch(data + at + kReadAhead);
    unrolled<streams>([&](auto i) { seen[i] = V::template merge<255, 255>(seen[i], V::load(data + at + i * step)); });
  }
  std::uint8_t bytes_seen[step];
  std::uint64_t sum = 0;
  for (auto& part : seen) {
    V::store(bytes_seen, part);
    for (int i = 0; i < step; ++i) sum += bytes_seen[i];
  }
  return sum;
}

template <class V>
std::uint64_t dot_products(std::uint64_t rounds) {
  using Dot = typename V::template Dot<2>;
  constexpr int independent = 12;  // more than latency times throughput of every CPU at hand
  alignas(64) std::uint8_t bytes[kQuad * V::lanes] = {};
  std::int8_t quad[kQuad] = {};
  __asm__ volatile("" : "+m"(bytes), "+m"(quad));
  const auto codes = V::load(bytes);
  typename Dot::Acc dots[independent];
  unrolled<independent>([&](auto i) { dots[i] = Dot::start(); });
  for (std::uint64_t round = 0; round < rounds; ++round) {
    unrolled<independent>([&](auto i) {
      Dot::add(dots[i], codes, quad);
      V::keep_alive(dots[i]);
    });
  }
  return rounds * independent * kQuad * V::lanes;
}

}  // namespace
}  // namespace moesaic
