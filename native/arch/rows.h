// What is done with rows of floats: quantizing activations, activation functions, conversions. Plain loops that
// compilers turn into vector code; in an unnamed namespace for the reason given in tiles.h.

#pragma once

#include "tiles.h"

namespace moesaic {
namespace {

template <class To, class From>
MOESAIC_INLINE To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  __builtin_memcpy(&result, &value, sizeof result);
  return result;
}

// ---------------------------------------------------------------------------------------------------------------------
// int8 activations
//
// Four quads at a time, in vectors of one quad or, where the instruction set has them, of two.

using Floats4 = float __attribute__((vector_size(4 * kQuad)));
using Words4 = std::uint32_t __attribute__((vector_size(4 * kQuad)));
using Ints4 = std::int32_t __attribute__((vector_size(4 * kQuad)));
using Floats8 = float __attribute__((vector_size(8 * kQuad)));
using Words8 = std::uint32_t __attribute__((vector_size(8 * kQuad)));
using Ints8 = std::int32_t __attribute__((vector_size(8 * kQuad)));

constexpr int kQuads = 4;              // that are gone through together
constexpr int kStep = kQuads * kQuad;  // their columns
constexpr std::uint32_t kInfinity = 0x7F800000, kTiny = 0x0D800000;  // bits of 2^-100: what is smaller counts as zero
constexpr float kRounder = 12582912.0f;                              // 1.5 * 2^23: adding it rounds to whole numbers

MOESAIC_INLINE Words4 larger(Words4 a, Words4 b) { return a > b ? a : b; }

template <class Vector, class Element>
MOESAIC_INLINE Vector loaded(const Element* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// Four quads of numbers in vectors of one quad or two.
template <class Quad, class Vector>
struct FourQuads {
  static constexpr int wide = sizeof(Vector) / sizeof(float), count = kStep / wide;
  using Part = Vector;
  Part part[count];

  static MOESAIC_INLINE FourQuads from(const float* x) {
    FourQuads result;
    unrolled<count>([&](auto i) MOESAIC_INLINE_LAMBDA { result.part[i] = loaded<Vector>(x + wide * i); });
    return result;
  }

  // Number s of `v` in all of quad s.
  static MOESAIC_INLINE FourQuads spread(Quad v) {
    FourQuads result;
    unrolled<count>([&](auto i) MOESAIC_INLINE_LAMBDA {
      if constexpr (wide == kQuad) result.part[i] = Vector{} + v[int{i}];
      if constexpr (wide == 2 * kQuad) {
        constexpr int a = 2 * i, b = a + 1;
        result.part[i] = __builtin_shufflevector(v, v, a, a, a, a, b, b, b, b);
      }
    });
    return result;
  }

  // body(vector of the result, number of the vector)
  template <class Body>
  static MOESAIC_INLINE FourQuads of_each(Body&& body) {
    FourQuads result;
    unrolled<count>([&](auto i) MOESAIC_INLINE_LAMBDA { result.part[i] = body(i); });
    return result;
  }

  MOESAIC_INLINE void split(Quad (&quads)[kQuads]) const {
    unrolled<kQuads>([&](auto s) MOESAIC_INLINE_LAMBDA {
      if constexpr (wide == kQuad) quads[s] = part[s];
      if constexpr (wide == 2 * kQuad) {
        constexpr int a = s % 2 * kQuad;
        quads[s] = __builtin_shufflevector(part[s / 2], part[s / 2], a, a + 1, a + 2, a + 3);
      }
    });
  }
};

template <class V>
using FourFloats = FourQuads<Floats4, std::conditional_t<V::wide == 8, Floats8, Floats4>>;
template <class V>
using FourWords = FourQuads<Words4, std::conditional_t<V::wide == 8, Words8, Words4>>;
template <class V>
using FourInts = FourQuads<Ints4, std::conditional_t<V::wide == 8, Ints8, Ints4>>;

// Bits compare like magnitudes, NaN above all.
constexpr std::uint32_t kMagnitude = 0x7FFFFFFF;

// Each of four quads, brought together: op(op(0, 1), op(2, 3)) of its numbers.
template <class Vector4, class Op>
MOESAIC_INLINE Vector4 together(const Vector4 (&quad)[kQuads], Op&& op) {
  const auto halves = [&](Vector4 a, Vector4 b) MOESAIC_INLINE_LAMBDA {
    return op(__builtin_shufflevector(a, b, 0, 4, 2, 6), __builtin_shufflevector(a, b, 1, 5, 3, 7));
  };
  const Vector4 first = halves(quad[0], quad[1]), last = halves(quad[2], quad[3]);
  return op(__builtin_shufflevector(first, last, 0, 1, 4, 5), __builtin_shufflevector(first, last, 2, 3, 6, 7));
}

MOESAIC_INLINE Words4 largest_of_each(const Words4 (&quad)[kQuads]) { return together(quad, larger); }

template <class Quads>
MOESAIC_INLINE Floats4 sum_of_each(const Quads& v) {
  Floats4 quads[kQuads];
  v.split(quads);
  return together(quads, [](Floats4 a, Floats4 b) MOESAIC_INLINE_LAMBDA { return a + b; });
}

template <class Quads>
MOESAIC_INLINE Floats4 sum_of_all(const Quads& v) {
  Floats4 quads[kQuads];
  v.split(quads);
  return (quads[0] + quads[1]) + (quads[2] + quads[3]);
}

constexpr int kGroups = 4;  // whose spills are chosen together

// Says which quads of four groups have spills, and what the largest magnitudes are that a single code then has to stand
// for: each spill goes to the quad with the largest share so far, which makes the largest share as small as can be.
// tops: the largest magnitude in each quad, a group in each lane. Spill e of group j is spilled[e][j].
template <int quads>
MOESAIC_INLINE Words4 choose_spills(const Words4 (&tops)[quads], int spills, Words4 (&spilled)[kMostSpills]) {
  constexpr std::uint32_t number = 31;  // the last bits of a key are the quad's; the first ones its share's
  static_assert(quads <= number + 1);
  Words4 keys[quads];
  unrolled<quads>([&](auto q) MOESAIC_INLINE_LAMBDA { keys[q] = (tops[q] & ~number) | std::uint32_t(q); });
  const auto top_keys = [&] MOESAIC_INLINE_LAMBDA {
    Words4 top[4] = {keys[0], keys[1], keys[2], keys[3]};
    unrolled<quads - 4>([&](auto q) MOESAIC_INLINE_LAMBDA { top[q % 4] = larger(top[q % 4], keys[q + 4]); });
    return larger(larger(top[0], top[1]), larger(top[2], top[3]));
  };
  for (int e = 0; e < spills; ++e) {
    const Words4 top = top_keys(), quad = top & number;
    Floats4 shares = Floats4{} + 1.0f;
    for (int before = 0; before < e; ++before) shares += spilled[before] == quad ? Floats4{} + 1.0f : Floats4{};
    spilled[e] = quad;
    const Floats4 share = bits_as<Floats4>(top & ~number) * (shares / (shares + 1.0f));
    const Words4 next = (bits_as<Words4>(share) & ~number) | quad;
    unrolled<quads>([&](auto q) MOESAIC_INLINE_LAMBDA { keys[q] = keys[q] == top ? next : keys[q]; });
  }
  return top_keys() & ~number;
}

constexpr float kMostCode = 127;

// The largest sum of magnitudes of codes that an accumulator has room for; 0 where it cannot be exceeded.
template <class V>
float most_sum(const Matrix& like, int spills) {
  float most = 0;
  chosen<1, 2, 3, 4, 8>(like.bits, [&](auto bits) {
    using Dot = typename V::template Dot<bits>;
    const bool is_whole = like.group / kQuad <= Dot::span;  // and spills are added to the same sum
    const int columns = Dot::columns * (is_whole ? like.group / kQuad : Dot::span), spilled = Dot::columns * spills;
    const int room = Dot::room / ((1 << bits) - 1);
    static_assert(Dot::room / ((1 << bits) - 1) >= 128 * Dot::columns * kMostSpills, "spills alone always have room");
    if (room < kMostCode * (columns + (is_whole ? spilled : 0))) most = static_cast<float>(room - columns / 2 - 1);  // rounding
  });
  return most;
}

// The largest sum of magnitudes of activations that are added up in one number, as bits.
template <class V, class Group>
MOESAIC_INLINE std::uint32_t largest_sum(const float* x, Group group, int bits) {
  std::uint32_t most = 0;
  chosen<1, 2, 3, 4, 8>(bits, [&](auto b) {
    using Dot = typename V::template Dot<b>;
    constexpr int piece = kQuad * Dot::span < group ? kQuad * Dot::span : int{group};
    for (int first = 0; first < group; first += piece) {
      FourFloats<V> sums{};
      for (int k = first; k < first + piece; k += kStep) {
        const auto some = FourWords<V>::from(x + k);
        unrolled<sums.count>([&](auto i) { sums.part[i] += bits_as<typename FourFloats<V>::Part>(some.part[i] & kMagnitude); });
      }
      const Floats4 all = sum_of_all(sums);
      const float low = all[0] + all[1], high = all[2] + all[3];
      for (const float sum : {Dot::columns == kQuad ? low + high : low, high}) {
        most = bits_as<std::uint32_t>(sum) > most ? bits_as<std::uint32_t>(sum) : most;
      }
    }
  });
  return most;
}

// The largest code where the largest magnitude it stands for is `top`: a whole number, so that activations of one
// magnitude, whose sums are largest, are exact. `most` as most_sum has it.
template <class V, class Group>
MOESAIC_INLINE float most_code(const float* x, Group group, int bits, std::uint32_t top, float most) {
  if (most == 0) return kMostCode;
  const std::uint32_t sum = largest_sum<V>(x, group, bits);
  const float codes = bits_as<float>(sum) / bits_as<float>(top) * kMostCode;  // their sum, were they up to kMostCode
  if (sum >= kInfinity || !(codes > most)) return kMostCode;  // of such activations results are infinite in any case
  return __builtin_floorf(kMostCode * (most / codes));
}

// The grids of four quads.
struct Grids {
  Floats4 scale, inverse;
};

// Grids whose largest codes stand for magnitudes whose bits are `tops`. Scales are rounded up to 12 significant bits:
// their products with an accumulator's start are then exact.
MOESAIC_INLINE Grids grids_of(Words4 tops, float most) {
  const Words4 raised = (bits_as<Words4>(bits_as<Floats4>(tops) / most) + 0xFFFu) & ~0xFFFu;
  const Words4 nan = Words4{} + 0x7FC00000u, none{};
  const auto is_tiny = tops < kTiny, is_infinite = tops >= kInfinity;
  const Words4 scale = is_infinite ? nan : is_tiny ? none : raised;
  const Floats4 inverse = 1.0f / bits_as<Floats4>(raised);
  return {bits_as<Floats4>(scale), bits_as<Floats4>(is_infinite | is_tiny ? none : bits_as<Words4>(inverse))};
}

// x in units of a scale, plus kRounder.
template <class Floats>
MOESAIC_INLINE Floats rounded(const float* x, Floats inverse) { return loaded<Floats>(x) * inverse + kRounder; }

MOESAIC_INLINE std::int8_t saturated(std::int32_t value) {
  return static_cast<std::int8_t>(value < -128 ? -128 : value > 127 ? 127 : value);
}

// Writes the codes of four quads, what does not fit cut off. Returns what they are without the cut.
template <class V>
MOESAIC_INLINE FourFloats<V> encode(const float* x, const FourFloats<V>& inverse, int panel, std::int8_t* codes) {
  using Found = FourFloats<V>;
  using Codes = FourInts<V>;
  const Found found = Found::of_each([&](auto i) MOESAIC_INLINE_LAMBDA { return rounded(x + V::wide * i, inverse.part[i]); });
  const Codes whole = Codes::of_each([&](auto i) MOESAIC_INLINE_LAMBDA {
    return bits_as<typename Codes::Part>(bits_as<typename FourWords<V>::Part>(found.part[i]) - bits_as<std::uint32_t>(kRounder));
  });
  Ints4 quads[kQuads];
  whole.split(quads);
  if (panel == 1) {
    V::narrow(quads, codes);
  } else {
    std::int8_t bytes[kStep];
    V::narrow(quads, bytes);
    for (int s = 0; s < kQuads; ++s) std::memcpy(codes + kQuad * s * panel, bytes + kQuad * s, kQuad);
  }
  return Found::of_each([&](auto i) MOESAIC_INLINE_LAMBDA { return found.part[i] - kRounder; });
}

// What does not fit into the codes of the quads that have spills.
MOESAIC_INLINE void encode_spills(const float* x, float inverse, int spills, const std::uint8_t* spilled, int panel,
                                  std::int8_t* codes) {
  for (int e = 0; e < spills; ++e) {
    const Floats4 found = rounded(x + kQuad * spilled[e * panel], Floats4{} + inverse);
    Ints4 left = bits_as<Ints4>(bits_as<Words4>(found) - bits_as<std::uint32_t>(kRounder));
    std::int8_t taken[kQuad];
    for (int c = 0; c < kQuad; ++c) {
      left[c] -= saturated(left[c]);
      for (int before = 0; before < e; ++before) {
        if (spilled[before * panel] == spilled[e * panel]) left[c] -= saturated(left[c]);
      }
      taken[c] = saturated(left[c]);
    }
    std::memcpy(codes + kQuad * e * panel, taken, kQuad);
  }
}

constexpr int kTries = 4;  // grids of a part. The best of four is off by a sixth less than any one.

// For each part of a stretch the grid that is least off, of those whose largest codes are 127, 126, ... The numbers of
// a part are so few that luck counts, and a grid costs nothing where the codes are multiplied.
template <class V, int stretch>
MOESAIC_INLINE Grids best_grids(const float* x) {
  using Bits = FourWords<V>;
  using Numbers = FourFloats<V>;
  constexpr int steps = stretch / kStep;
  Bits top{};
  unrolled<steps>([&](auto v) MOESAIC_INLINE_LAMBDA {
    const Bits some = Bits::from(x + kStep * v);
    unrolled<Bits::count>([&](auto i) MOESAIC_INLINE_LAMBDA {
      const auto magnitude = some.part[i] & kMagnitude;
      top.part[i] = magnitude > top.part[i] ? magnitude : top.part[i];
    });
  });
  Words4 quads[kQuads];
  top.split(quads);
  const Words4 tops = largest_of_each(quads);
  Grids best{};
  Floats4 least{};
  unrolled<kTries>([&](auto number) MOESAIC_INLINE_LAMBDA {
    const Grids grids = grids_of(tops, kMostCode - number);
    const Numbers inverse = Numbers::spread(grids.inverse);
    Numbers squares{};
    unrolled<steps>([&](auto v) MOESAIC_INLINE_LAMBDA {
      unrolled<Numbers::count>([&](auto i) MOESAIC_INLINE_LAMBDA {
        const float* from = x + kStep * v + V::wide * i;
        const auto in_units = loaded<typename Numbers::Part>(from) * inverse.part[i];
        const auto off = in_units - (rounded(from, inverse.part[i]) - kRounder);
        squares.part[i] += off * off;
      });
    });
    const Floats4 error = sum_of_each(squares) * grids.scale * grids.scale;
    const auto is_better = number == 0 ? Ints4{} == 0 : error < least;
    least = is_better ? error : least;
    best.scale = is_better ? grids.scale : best.scale;
    best.inverse = is_better ? grids.inverse : best.inverse;
  });
  return best;
}

// One group for `few`. `weights` take back those of its in-place codes. Returns the sum.
template <class V>
MOESAIC_INLINE Floats4 quantize_parts(const float* x, int group, int stretch, Floats4 weights, int panel,
                                      std::int8_t* codes, float* scales) {
  using Numbers = FourFloats<V>;
  Numbers sum{};
  for (int first = 0; first < group; first += stretch) {
    const Grids grids = stretch == 32 ? best_grids<V, 32>(x + first) : best_grids<V, 64>(x + first);
    const Numbers inverse = Numbers::spread(grids.inverse), all = Numbers::spread(grids.scale);
    for (int k = first; k < first + stretch; k += kStep) {
      const Numbers found = encode<V>(x + k, inverse, panel, codes + k * panel);
      unrolled<Numbers::count>([&](auto i) MOESAIC_INLINE_LAMBDA { sum.part[i] += found.part[i] * all.part[i]; });
    }
    const Floats4 scale = grids.scale * weights;
    std::memcpy(scales + std::ptrdiff_t{first / stretch} * kParts * panel, &scale, sizeof scale);
  }
  return sum_of_all(sum);
}

// Four groups for `many`, the first `count` of them real. Calls take(j, sum) with the sums.
template <class V, class Group, class Take>
MOESAIC_INLINE void quantize_spills(const float* const (&x)[kGroups], int count, Group group, int bits, Cut cut, float most,
                                    int panel, std::int8_t* codes, float* scales, std::uint8_t* spilled, Take&& take) {
  using Numbers = FourFloats<V>;
  Words4 tops[group / kQuad];
  unrolled<group / kQuad>([&](auto q) MOESAIC_INLINE_LAMBDA {
    Words4 quads[kGroups];
    for (int j = 0; j < kGroups; ++j) quads[j] = loaded<Words4>(x[j] + kQuad * q) & kMagnitude;
    tops[q] = largest_of_each(quads);
  });
  Words4 with_spills[kMostSpills];
  const Words4 top = choose_spills(tops, cut.spills, with_spills);
  for (int j = 0; j < count; ++j) {
    const Grids grids = grids_of(Words4{} + top[j], most_code<V>(x[j], group, bits, top[j], most));
    const Numbers inverse = Numbers::spread(grids.inverse);
    Numbers sum{};
    for (int k = 0; k < group; k += kStep) {
      const Numbers found = encode<V>(x[j] + k, inverse, panel, codes + k * panel);
      unrolled<Numbers::count>([&](auto i) MOESAIC_INLINE_LAMBDA { sum.part[i] += found.part[i]; });
    }
    for (int e = 0; e < cut.spills; ++e) spilled[e * panel] = static_cast<std::uint8_t>(with_spills[e][j]);
    encode_spills(x[j], grids.inverse[0], cut.spills, spilled, panel, codes + group * panel);
    *scales = grids.scale[0];
    take(j, sum_of_all(sum) * grids.scale[0]);
    codes += cut.codes(group) * panel, scales += panel, spilled += cut.spills * panel;
  }
}

// What takes back the weights of `few`'s in-place codes, per part.
template <class V>
Floats4 part_weights(int bits) {
  float weights[kParts] = {};
  chosen<1, 2, 3, 4, 8>(bits, [&](auto b) {
    unrolled<kParts>([&](auto s) { weights[s] = 1.0f / static_cast<float>(1 << weight_shift<V, b, false>(s)); });
  });
  return loaded<Floats4>(weights);
}

template <class V>
void quantize(const Matrix& like, const float* x, int columns, int groups, Cut cut, int panel, std::int8_t* codes,
              float* scales, float* sums, std::uint8_t* spilled) {
  const Floats4 weights = part_weights<V>(like.bits);
  const float unit = zero_factor(like), most = most_sum<V>(like, cut.spills);
  chosen<32, 64, 128>(like.group, [&](auto group) {
    float end[group], none[group] = {};  // the last columns, with the zeros that fill their group; zeros alone
    const auto start_of = [&](int j) MOESAIC_INLINE_LAMBDA -> const float* {
      const int left = columns - j * group;
      if (left >= group) return x + std::ptrdiff_t{j} * group;
      if (left <= 0) return none;
      std::memset(end, 0, sizeof end);
      std::memcpy(end, x + std::ptrdiff_t{j} * group, sizeof(float) * left);
      return end;
    };
    const auto set_sum = [&](int j, Floats4 sum) MOESAIC_INLINE_LAMBDA {
      sums[std::ptrdiff_t{j} * panel] = unit * ((sum[0] + sum[1]) + (sum[2] + sum[3]));
    };
    const int step = cut.stretch > 0 ? 1 : kGroups;
    for (int j = 0; j < groups; j += step) {
      if (cut.stretch > 0) {
        set_sum(j, quantize_parts<V>(start_of(j), group, cut.stretch, weights, panel, codes, scales));
      } else {
        const float* from[kGroups];
        for (int i = 0; i < kGroups; ++i) from[i] = j + i < groups ? start_of(j + i) : none;
        const int count = groups - j < kGroups ? groups - j : kGroups;
        quantize_spills<V>(from, count, group, like.bits, cut, most, panel, codes, scales, spilled,
                           [&](int i, Floats4 sum) MOESAIC_INLINE_LAMBDA { set_sum(j + i, sum); });
      }
      codes += step * cut.codes(group) * panel;
      scales += step * cut.scales(group) * panel;
      spilled += step * cut.spills * panel;
    }
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Activation functions, to about 1e-7

MOESAIC_INLINE float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float n = __builtin_rintf(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two pieces, the first exact in n * piece
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * bits_as<float>((static_cast<std::int32_t>(n) + 127) << 23);
}

MOESAIC_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// Abramowitz and Stegun 7.1.26, absolute error below 2e-7.
MOESAIC_INLINE float error_function(float x) {
  const float a = __builtin_fabsf(x);
  const float t = 1.0f / (1.0f + 0.3275911f * a);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  return __builtin_copysignf(1.0f - p * t * exponential(-a * a), x);
}

MOESAIC_INLINE float smallest(float a, float b) { return a > b ? b : a; }
MOESAIC_INLINE float largest(float a, float b) { return a < b ? b : a; }

template <class Function>
MOESAIC_INLINE void each(const float* gate, const float* up, float* out, int count, Function&& function) {
  if (gate) {
    for (int i = 0; i < count; ++i) out[i] = function(gate[i]) * up[i];
  } else {
    for (int i = 0; i < count; ++i) out[i] = function(up[i]);
  }
}

inline void swiglu_clamped(Activation a, const float* gate, const float* up, float* out, int count) {
  for (int i = 0; i < count; ++i) {
    const float g = smallest(gate[i], a.limit);
    const float u = largest(smallest(up[i], a.limit), -a.limit);
    out[i] = (u + 1.0f) * (g * sigmoid(a.alpha * g));
  }
}

inline void activate(Activation a, const float* gate, const float* up, float* out, int count) {
  switch (a.kind) {
    case ActivationKind::silu:
      return each(gate, up, out, count, [](float x) { return x * sigmoid(x); });
    case ActivationKind::gelu:
      return each(gate, up, out, count,
                  [](float x) { return 0.5f * x * (1.0f + error_function(x * 0.70710678f)); });
    case ActivationKind::gelu_tanh:  // (1 + tanh(y)) / 2 = sigmoid(2 y)
      return each(gate, up, out, count, [](float x) {
        return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));
      });
    case ActivationKind::relu:
      return each(gate, up, out, count, [](float x) { return largest(x, 0.0f); });
    case ActivationKind::swiglu_clamped:
      return swiglu_clamped(a, gate, up, out, count);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// 16-bit floats

MOESAIC_INLINE float from_bfloat16(std::uint16_t h) { return bits_as<float>(std::uint32_t{h} << 16); }

MOESAIC_INLINE std::uint16_t to_bfloat16(float value) {
  const auto bits = bits_as<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const bool nan = (bits & 0x7FFFFFFFu) > kInfinity;
  return static_cast<std::uint16_t>(nan ? (bits >> 16) | 0x40u : rounded);
}

MOESAIC_INLINE float from_float16(std::uint16_t h) {
  const std::uint32_t sign = (h & 0x8000u) << 16, magnitude = h & 0x7FFFu;
  const std::uint32_t normal = (magnitude << 13) + (112u << 23);
  const std::uint32_t special = normal + (112u << 23);  // infinity and NaN: the largest exponent stays the largest
  const auto small = bits_as<std::uint32_t>(static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f);
  return bits_as<float>(sign | (magnitude < 0x400u ? small : magnitude < 0x7C00u ? normal : special));
}

MOESAIC_INLINE std::uint16_t to_float16(float value) {
  const auto bits = bits_as<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  const std::uint32_t normal = (magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  const std::uint32_t special = magnitude > kInfinity ? 0x7E00u : 0x7C00u;
  // below 2^-14 a float16 counts in steps of 2^-24
  const float clipped = smallest(bits_as<float>(magnitude), 0x1p-14f);
  const auto small = static_cast<std::uint32_t>(static_cast<std::int32_t>(__builtin_rintf(clipped * 0x1p24f)));
  const std::uint32_t result = magnitude < 0x38800000u ? small : magnitude < 0x47800000u ? normal : special;
  return static_cast<std::uint16_t>(sign | result);
}

inline void to_float(DType dtype, const void* in, float* out, int count) {
  const auto* halves = static_cast<const std::uint16_t*>(in);
  if (dtype == DType::float32) {
    std::memcpy(out, in, sizeof(float) * count);
  } else if (dtype == DType::bfloat16) {
    for (int i = 0; i < count; ++i) out[i] = from_bfloat16(halves[i]);
  } else {
    for (int i = 0; i < count; ++i) out[i] = from_float16(halves[i]);
  }
}

inline void from_float(DType dtype, const float* in, void* out, int count) {
  auto* halves = static_cast<std::uint16_t*>(out);
  if (dtype == DType::float32) {
    std::memcpy(out, in, sizeof(float) * count);
  } else if (dtype == DType::bfloat16) {
    for (int i = 0; i < count; ++i) halves[i] = to_bfloat16(in[i]);
  } else {
    for (int i = 0; i < count; ++i) halves[i] = to_float16(in[i]);
  }
}

template <class V>
void dense(const std::uint16_t* weights, int columns, int count, const float* x, int rows, float* out) {
  constexpr int streams = 4, step = streams * V::lanes;  // sums that do not wait for each other
  for (int n = 0; n < count; ++n) {
    const std::uint16_t* row = weights + std::size_t(n) * columns;
    for (int t = 0; t < rows; ++t) {
      const float* with = x + std::size_t(t) * columns;
      typename V::Floats sums[streams];
      for (auto& sum : sums) sum = V::fill(0);
      int k = 0;
      for (; k + step <= columns; k += step) {
        for (int line = 0; t == 0 && line < 2 * step; line += 64) {
          __builtin_prefetch(reinterpret_cast<const char*>(row + k) + kPrefetchAhead + line);
        }
        unrolled<streams>([&](auto s) {
          sums[s] = V::fma(V::from_bfloat16(row + k + s * V::lanes), V::load(with + k + s * V::lanes), sums[s]);
        });
      }
      float sum = V::total(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
      for (; k < columns; ++k) sum += from_bfloat16(row[k]) * with[k];
      out[std::size_t(t) * count + n] = sum;
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// What a single token passes through between the matrices

template <class V>
float dot(const float* a, const float* b, int count) {
  constexpr int streams = 4, step = streams * V::lanes;
  typename V::Floats sums[streams];
  for (auto& sum : sums) sum = V::fill(0);
  int k = 0;
  for (; k + step <= count; k += step) {
    unrolled<streams>([&](auto s) {
      sums[s] = V::fma(V::load(a + k + s * V::lanes), V::load(b + k + s * V::lanes), sums[s]);
    });
  }
  float sum = V::total(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
  for (; k < count; ++k) sum += a[k] * b[k];
  return sum;
}

template <class V>
void rms_norm(const float* x, const float* weight, float epsilon, float* out, int count) {
  const float factor = 1.0f / __builtin_sqrtf(dot<V>(x, x, count) / static_cast<float>(count) + epsilon);
  for (int i = 0; i < count; ++i) out[i] = x[i] * factor * weight[i];
}

// Floats of numbers of any dtype, `count` of them, and zeros up to `room`.
template <class V>
MOESAIC_INLINE void widen(DType dtype, const void* from, int count, float* to, int room) {
  int i = 0;
  if (dtype == DType::float32) {
    std::memcpy(to, from, sizeof(float) * count);
    i = count;
  } else {
    const auto* halves = static_cast<const std::uint16_t*>(from);
    for (; i + V::lanes <= count; i += V::lanes) {
      V::store(to + i, dtype == DType::bfloat16 ? V::from_bfloat16(halves + i) : V::from_float16(halves + i));
    }
    for (; i < count; ++i) to[i] = dtype == DType::bfloat16 ? from_bfloat16(halves[i]) : from_float16(halves[i]);
  }
  std::memset(to + i, 0, sizeof(float) * (room - i));
}

// Scores of `count` keys, a multiple of four, for one query.
template <class V>
MOESAIC_INLINE void score_keys(const float* query, const float* keys, int count, int size, float scale, float* scores) {
  constexpr int streams = 4;
  for (int j = 0; j < count; j += streams) {
    const float* four = keys + std::ptrdiff_t{j} * size;
    typename V::Floats sums[streams];
    for (auto& sum : sums) sum = V::fill(0);
    int k = 0;
    for (; k + V::lanes <= size; k += V::lanes) {
      const auto with = V::load(query + k);
      unrolled<streams>([&](auto s) { sums[s] = V::fma(V::load(four + s * size + k), with, sums[s]); });
    }
    for (int s = 0; s < streams; ++s) scores[j + s] = V::total(sums[s]);
    for (; k < size; ++k) {
      for (int s = 0; s < streams; ++s) scores[j + s] += four[s * size + k] * query[k];
    }
    for (int s = 0; s < streams; ++s) scores[j + s] *= scale;
  }
}

// out = out * kept + sum of shares[j] * values[j], from number `k` on as far as whole steps go; where that is.
template <class V, int streams>
MOESAIC_INLINE int add_values(const float* shares, const float* values, int count, int size, float kept, float* out, int k) {
  constexpr int step = streams * V::lanes;
  for (; k + step <= size; k += step) {
    typename V::Floats sums[streams];
    unrolled<streams>([&](auto s) { sums[s] = V::mul(V::load(out + k + s * V::lanes), V::fill(kept)); });
    for (int j = 0; j < count; ++j) {
      const float* value = values + std::ptrdiff_t{j} * size + k;
      const auto share = V::fill(shares[j]);
      unrolled<streams>([&](auto s) { sums[s] = V::fma(V::load(value + s * V::lanes), share, sums[s]); });
    }
    unrolled<streams>([&](auto s) { V::store(out + k + s * V::lanes, sums[s]); });
  }
  return k;
}

// Scores become shares: takes them up in the largest so far and the sum so far. What is to be kept of values so far; 0
// where no key was seen yet.
template <class V>
MOESAIC_INLINE float share_out(float (&scores)[kKeysAtATime], const std::uint8_t* seen, int count, float& top, float& sum) {
  constexpr float nothing = -__builtin_inff();
  for (int j = count; j < kKeysAtATime; ++j) scores[j] = nothing;
  for (int j = 0; seen && j < count; ++j) scores[j] = seen[j] ? scores[j] : nothing;
  const float before = top;
  float tops[kKeysAtATime / 2];
  for (int i = 0; i < 8; ++i) tops[i] = largest(scores[i], scores[8 + i]);
  for (int i = 0; i < 4; ++i) tops[i] = largest(tops[i], tops[4 + i]);
  top = largest(largest(largest(tops[0], tops[1]), largest(tops[2], tops[3])), before);
  if (top == nothing) {  // and NaN, which makes the sum NaN below, must not get lost here
    for (float score : scores) sum += score == nothing ? 0.0f : score;
    return 0;
  }
  for (float& score : scores) score = score == nothing ? 0.0f : exponential(score - top);
  float of_these = 0;
  for (int j = 0; j < kKeysAtATime; j += V::lanes) of_these += V::total(V::load(scores + j));
  const float kept = top == before ? 1.0f : exponential(before - top);
  sum = sum * kept + of_these;
  return kept;
}

// One query and some keys: takes them up in what was found so far.
template <class V>
MOESAIC_INLINE void attend_some(const float* query, const float* keys, const float* values, const std::uint8_t* seen,
                                int count, const Keys& all, float* found, float& top, float& sum) {
  float shares[kKeysAtATime];
  score_keys<V>(query, keys, (count + 3) / 4 * 4, all.size, all.scale, shares);
  const float kept = share_out<V>(shares, seen, count, top, sum);
  if (sum == 0) return;
  const int size = all.value_size;
  int k = add_values<V, 8>(shares, values, count, size, kept, found, 0);
  k = add_values<V, 1>(shares, values, count, size, kept, found, k);
  for (; k < size; ++k) {
    float value = found[k] * kept;
    for (int j = 0; j < count; ++j) value += shares[j] * values[j * size + k];
    found[k] = value;
  }
}

template <class V>
void attend(const float* queries, int count, Keys all, Attended found, float* scratch) {
  float *keys = scratch, *values = scratch + std::ptrdiff_t{kKeysAtATime} * all.size;
  const std::ptrdiff_t bytes = all.dtype == DType::float32 ? 4 : 2;
  for (int q = 0; q < count; ++q) {
    found.tops[q] = -__builtin_inff();
    found.sums[q] = 0;
  }
  std::memset(found.values, 0, sizeof(float) * count * all.value_size);
  for (int first = 0; first < all.count; first += kKeysAtATime) {
    const int few = all.count - first < kKeysAtATime ? all.count - first : kKeysAtATime;
    const auto from = [&](const void* all_of_them, int size) {
      return static_cast<const std::uint8_t*>(all_of_them) + bytes * first * size;
    };
    widen<V>(all.dtype, from(all.keys, all.size), few * all.size, keys, kKeysAtATime * all.size);
    widen<V>(all.dtype, from(all.values, all.value_size), few * all.value_size, values, few * all.value_size);
    for (int q = 0; q < count; ++q) {
      attend_some<V>(queries + std::ptrdiff_t{q} * all.size, keys, values, all.seen ? all.seen + first : nullptr, few, all,
                     found.values + std::ptrdiff_t{q} * all.value_size, found.tops[q], found.sums[q]);
    }
  }
}

template <class V>
constexpr Kernels table(const char* name, decltype(Kernels::attend) attend_here = attend<V>) {
  return {name,     V::few_rows, V::few_pays, V::panel_rows, quantize<V>, few<V>,     many<V>,     exact<V>,
          dense<V>, rms_norm<V>, attend_here, activate,      to_float,    from_float, read_all<V>, dot_products<V>};
}

}  // namespace
}  // namespace moesaic
