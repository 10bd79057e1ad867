// AVX2: a vector is half a tile row of 8 lanes. There is no byte product into 32 bits; `vpmaddubsw` adds pairs into 16
// bits, where sums of codes up to 15 have room for some quads.

#include <immintrin.h>

#include "rows.h"

namespace moesaic {
namespace {

struct Avx2 {
  static constexpr int lanes = 8, units = 2, few_units = 2, few_rows = 2, panel_rows = 4, few_pays = 3, wide = 8;
  static constexpr bool whole_bytes = false, keeps_totals = false;
  // Two rows have more sums than there are registers; only for 3 bits is unpacking once worth it.
  template <int bits>
  static constexpr int few_together = bits == 3 ? few_rows : 1;

  using Codes = __m256i;
  using Floats = __m256;
  using Ints = __m256i;

  static void narrow(const Ints4 (&quads)[kQuads], std::int8_t* to) {
    const __m128i low = _mm_packs_epi32((__m128i)quads[0], (__m128i)quads[1]);
    const __m128i high = _mm_packs_epi32((__m128i)quads[2], (__m128i)quads[3]);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(low, high));
  }
  static Codes load(const std::uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static void store(std::uint8_t* to, Codes codes) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), codes); }
  template <int mask>
  static Codes keep(Codes codes) {
    return mask == 255 ? codes : _mm256_and_si256(codes, _mm256_set1_epi8(static_cast<char>(mask)));
  }
  // Bits that cross from byte to byte are always masked away afterwards.
  template <int shift>
  static Codes down(Codes codes) {
    if constexpr (shift > 0) return _mm256_srli_epi16(codes, shift);
    if constexpr (shift < 0) return _mm256_slli_epi16(codes, -shift);
    return codes;
  }
  template <int mask_a, int mask_b>
  static Codes merge(Codes a, Codes b) {
    return _mm256_or_si256(keep<mask_a>(a), keep<mask_b>(b));
  }
  template <int c>
  static Floats column(Codes codes) {
    const __m256i lane = c == 3 ? _mm256_srli_epi32(codes, 24)
                                : _mm256_and_si256(_mm256_srli_epi32(codes, 8 * c), _mm256_set1_epi32(255));
    return _mm256_cvtepi32_ps(lane);
  }

  static Floats load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Floats a) { _mm256_storeu_ps(to, a); }
  static Floats fill(float value) { return _mm256_set1_ps(value); }
  static Floats from_bytes(const std::uint8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  }
  static Floats from_bfloat16(const std::uint16_t* from) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static Floats from_float16(const std::uint16_t* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static float total(Floats a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Floats fnma(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
  static Ints sum(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static Floats floats(Ints a) { return _mm256_cvtepi32_ps(a); }

  static __m256i broadcast(const std::int8_t* quad) {
    std::int32_t four;
    std::memcpy(&four, quad, sizeof four);
    return _mm256_set1_epi32(four);
  }
  static __m256i pairs(__m256i halves) { return _mm256_madd_epi16(halves, _mm256_set1_epi16(1)); }

  // Codes up to 15, weights of in-place codes included.
  template <int bits>
  struct Dot {
    using Acc = __m256i;
    static constexpr int span = bits <= 2 ? kGroupQuads : kGroupQuads / 2, columns = kQuad / 2, room = (1 << 15) - 1;
    static constexpr float magic = 0;
    static Acc start() { return _mm256_setzero_si256(); }
    static MOESAIC_INLINE void add(Acc& acc, Codes codes, const std::int8_t* quad) {
      acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(codes, broadcast(quad)));
    }
    static Ints widen(Acc acc) { return pairs(acc); }
    static Floats value(Acc acc) { return floats(widen(acc)); }
    static Floats scaled(Acc acc, float scale, float) { return mul(value(acc), fill(scale)); }
  };
  static MOESAIC_INLINE void keep_alive(Ints& v) { __asm__ volatile("" : "+x"(v)); }
  static MOESAIC_INLINE void keep_alive(Floats& v) { __asm__ volatile("" : "+x"(v)); }
};

// Eight bits as two times four.
template <>
struct Avx2::Dot<8> {
  using Acc = __m256i;
  static constexpr int span = kGroupQuads, columns = kQuad, room = kUnlimited;
  static constexpr float magic = 0;
  static Acc start() { return _mm256_setzero_si256(); }
  static MOESAIC_INLINE void add(Acc& acc, Codes codes, const std::int8_t* quad) {
    const __m256i four = broadcast(quad);
    const __m256i low = pairs(_mm256_maddubs_epi16(keep<15>(codes), four));
    const __m256i high = pairs(_mm256_maddubs_epi16(keep<15>(down<4>(codes)), four));
    acc = sum(acc, sum(low, _mm256_slli_epi32(high, 4)));
  }
  static Floats value(Acc acc) { return floats(acc); }
  static Floats scaled(Acc acc, float scale, float) { return mul(value(acc), fill(scale)); }
};

constexpr Kernels kTable = table<Avx2>("avx2");

}  // namespace

const Kernels* avx2_kernels() { return &kTable; }

}  // namespace moesaic
