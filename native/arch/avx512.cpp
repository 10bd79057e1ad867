// AVX-512 with VNNI: a vector is a whole tile row of 16 lanes, products are `vpdpbusd`.

#ifdef MOESAIC_EMULATE_AVX512
#include "../../tests/native/emulated_avx512.h"
#else
#include <immintrin.h>

#include "avx512_bf16.h"
#endif

#include "rows.h"

namespace moesaic {
namespace {

struct Avx512 {
  static constexpr int lanes = 16, units = 2, few_units = 1, few_rows = 4, panel_rows = 6, few_pays = 12, wide = 8;
  static constexpr bool whole_bytes = true, keeps_totals = true;
  template <int bits>
  static constexpr int few_together = few_rows;

  using Codes = __m512i;
  using Floats = __m512;
  using Ints = __m512i;

  static void narrow(const Ints4 (&quads)[kQuads], std::int8_t* to) {
    const __m128i low = _mm_packs_epi32((__m128i)quads[0], (__m128i)quads[1]);
    const __m128i high = _mm_packs_epi32((__m128i)quads[2], (__m128i)quads[3]);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(low, high));
  }
  static Codes load(const std::uint8_t* from) { return _mm512_loadu_si512(from); }
  static void store(std::uint8_t* to, Codes codes) { _mm512_storeu_si512(to, codes); }
  template <int mask>
  static Codes keep(Codes codes) {
    return mask == 255 ? codes : _mm512_and_si512(codes, _mm512_set1_epi8(static_cast<char>(mask)));
  }
  // Bits that cross from byte to byte are always masked away afterwards.
  template <int shift>
  static Codes down(Codes codes) {
    if constexpr (shift > 0) return _mm512_srli_epi16(codes, shift);
    if constexpr (shift < 0) return _mm512_slli_epi16(codes, -shift);
    return codes;
  }
  template <int mask_a, int mask_b>
  static Codes merge(Codes a, Codes b) {
    constexpr int b_or_both = 0xF8;  // truth table of x | (y & z)
    return _mm512_ternarylogic_epi32(keep<mask_a>(a), b, _mm512_set1_epi8(static_cast<char>(mask_b)), b_or_both);
  }
  template <int c>
  static Floats column(Codes codes) {
    const __m512i lane = c == 3 ? _mm512_srli_epi32(codes, 24)
                                : _mm512_and_si512(_mm512_srli_epi32(codes, 8 * c), _mm512_set1_epi32(255));
    return _mm512_cvtepi32_ps(lane);
  }

  static Floats load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Floats a) { _mm512_storeu_ps(to, a); }
  static Floats fill(float value) { return _mm512_set1_ps(value); }
  static Floats from_bytes(const std::uint8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
  static Floats from_bfloat16(const std::uint16_t* from) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static Floats from_float16(const std::uint16_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static float total(Floats a) { return _mm512_reduce_add_ps(a); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
  static Ints sum(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static Floats floats(Ints a) { return _mm512_cvtepi32_ps(a); }

  // Accumulators start at the bits of the float 1.5 * 2^23. Sums of products stay below 2^22 in magnitude (`room`), so
  // that they count in the float's last place: the accumulator is a float already, without a conversion, and one
  // multiply-add makes it scale * (acc - start). That is exact up to one rounding, for scales of 12 bits.
  struct Products {
    using Acc = __m512i;
    static constexpr int span = kGroupQuads, columns = kQuad, room = (1 << 22) - 1;
    static constexpr float magic = 12582912.0f;
    static Acc start() { return _mm512_set1_epi32(0x4B400000); }
    static MOESAIC_INLINE void add(Acc& acc, Codes codes, const std::int8_t* quad) {
      std::int32_t four;
      std::memcpy(&four, quad, sizeof four);
      acc = _mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(four));
    }
    static Floats value(Acc acc) { return _mm512_sub_ps(_mm512_castsi512_ps(acc), fill(magic)); }
    static Floats scaled(Acc acc, float scale, float below) {
      return fma(_mm512_castsi512_ps(acc), fill(scale), fill(below));
    }
  };
  template <int bits>
  using Dot = Products;
#ifdef MOESAIC_EMULATE_AVX512
  static MOESAIC_INLINE void keep_alive(Ints& v) { __asm__ volatile("" : "+m"(v)); }
  static MOESAIC_INLINE void keep_alive(Floats& v) { __asm__ volatile("" : "+m"(v)); }
#else
  static MOESAIC_INLINE void keep_alive(Ints& v) { __asm__ volatile("" : "+v"(v)); }
  static MOESAIC_INLINE void keep_alive(Floats& v) { __asm__ volatile("" : "+v"(v)); }
#endif
};

constexpr Kernels kTable = table<Avx512>("avx512");

}  // namespace

#ifdef MOESAIC_EMULATE_AVX512
const Kernels* avx512_kernels() { return &kTable; }
#else
const Kernels* avx512_kernels() {
  static constexpr Kernels with_bf16 = table<Avx512>("avx512", attend_bf16<Avx512>);
  static const bool has_bf16 = __builtin_cpu_supports("avx512bf16");
  return has_bf16 ? &with_bf16 : &kTable;
}
#endif

}  // namespace moesaic
