// Plain C++, for every CPU, and the readable one: a vector is an array of 16 lanes.

#include "rows.h"

namespace moesaic {
namespace {

struct Generic {
  static constexpr int lanes = kBlockRows, units = 1, few_units = 1, few_rows = 1, panel_rows = 4, few_pays = 4, wide = 4;
  static constexpr bool whole_bytes = true, keeps_totals = false;
  template <int bits>
  static constexpr int few_together = few_rows;

  struct Codes {
    std::uint8_t byte[kQuad * lanes];
  };
  struct Floats {
    float lane[lanes];
  };
  struct Ints {
    std::int32_t lane[lanes];
  };

  template <class Result, class Function>
  static Result each(Function&& function) {
    Result result;
    for (int i = 0; i < lanes; ++i) result.lane[i] = function(i);
    return result;
  }

  static void narrow(const Ints4 (&quads)[kQuads], std::int8_t* to) {
    for (int i = 0; i < kQuads * kQuad; ++i) to[i] = saturated(quads[i / kQuad][i % kQuad]);
  }
  static Codes load(const std::uint8_t* from) {
    Codes codes;
    std::memcpy(codes.byte, from, sizeof codes);
    return codes;
  }
  static void store(std::uint8_t* to, const Codes& codes) { std::memcpy(to, codes.byte, sizeof codes); }
  template <int mask>
  static Codes keep(Codes codes) {
    for (auto& byte : codes.byte) byte = static_cast<std::uint8_t>(byte & mask);
    return codes;
  }
  template <int shift>  // to the left when negative
  static Codes down(Codes codes) {
    for (auto& byte : codes.byte) {
      byte = static_cast<std::uint8_t>(shift < 0 ? byte << (shift < 0 ? -shift : 0) : byte >> (shift < 0 ? 0 : shift));
    }
    return codes;
  }
  template <int mask_a, int mask_b>
  static Codes merge(const Codes& a, const Codes& b) {
    Codes codes;
    for (int i = 0; i < kQuad * lanes; ++i) {
      codes.byte[i] = static_cast<std::uint8_t>((a.byte[i] & mask_a) | (b.byte[i] & mask_b));
    }
    return codes;
  }
  template <int c>  // column c of the quads
  static Floats column(const Codes& codes) {
    return each<Floats>([&](int i) { return static_cast<float>(codes.byte[kQuad * i + c]); });
  }

  static Floats load(const float* from) {
    return each<Floats>([&](int i) { return from[i]; });
  }
  static void store(float* to, const Floats& a) { std::memcpy(to, a.lane, sizeof a); }
  static Floats fill(float value) {
    return each<Floats>([&](int) { return value; });
  }
  static Floats from_bytes(const std::uint8_t* from) {
    return each<Floats>([&](int i) { return static_cast<float>(from[i]); });
  }
  static Floats from_bfloat16(const std::uint16_t* from) {
    return each<Floats>([&](int i) { return moesaic::from_bfloat16(from[i]); });
  }
  static Floats from_float16(const std::uint16_t* from) {
    return each<Floats>([&](int i) { return moesaic::from_float16(from[i]); });
  }
  static float total(const Floats& a) {
    float sum = 0;
    for (float lane : a.lane) sum += lane;
    return sum;
  }
  static Floats add(const Floats& a, const Floats& b) {
    return each<Floats>([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static Floats mul(const Floats& a, const Floats& b) {
    return each<Floats>([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static Floats fma(const Floats& a, const Floats& b, const Floats& c) {
    return each<Floats>([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static Floats fnma(const Floats& a, const Floats& b, const Floats& c) {
    return each<Floats>([&](int i) { return c.lane[i] - a.lane[i] * b.lane[i]; });
  }
  static Ints sum(const Ints& a, const Ints& b) {
    return each<Ints>([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static Floats floats(const Ints& a) {
    return each<Floats>([&](int i) { return static_cast<float>(a.lane[i]); });
  }

  struct Products {
    using Acc = Ints;
    static constexpr int span = kGroupQuads, columns = kQuad, room = kUnlimited;
    static constexpr float magic = 0;
    static Acc start() {
      return each<Ints>([](int) { return 0; });
    }
    static MOESAIC_INLINE void add(Acc& acc, const Codes& codes, const std::int8_t* quad) {
      for (int i = 0; i < lanes; ++i) {
        for (int c = 0; c < kQuad; ++c) acc.lane[i] += std::int32_t{codes.byte[kQuad * i + c]} * quad[c];
      }
    }
    static Floats value(const Acc& acc) { return floats(acc); }
    static Floats scaled(const Acc& acc, float scale, float) { return mul(floats(acc), fill(scale)); }
  };
  template <int bits>
  using Dot = Products;
  static MOESAIC_INLINE void keep_alive(Ints& v) { __asm__ volatile("" : "+m"(v)); }
  static MOESAIC_INLINE void keep_alive(Floats& v) { __asm__ volatile("" : "+m"(v)); }
};

constexpr Kernels kTable = table<Generic>("generic");

}  // namespace

const Kernels* generic_kernels() { return &kTable; }

}  // namespace moesaic
