// Stand-ins for the AVX-512 intrinsics that native/arch/avx512.cpp uses, in plain GCC vector code, so that the file
// can be tested (slowly) on a CPU without AVX-512. Takes the place of <immintrin.h>: -DMOESAIC_EMULATE_AVX512.

#pragma once

#include <cstdint>
#include <cstring>

typedef long long __m512i __attribute__((vector_size(64), may_alias));
typedef float __m512 __attribute__((vector_size(64), may_alias));
typedef long long __m256i __attribute__((vector_size(32), may_alias));
typedef long long __m128i __attribute__((vector_size(16), may_alias));

namespace emulated {

typedef std::int32_t Ints __attribute__((vector_size(64)));
typedef std::uint32_t Words __attribute__((vector_size(64)));
typedef std::uint16_t Halves __attribute__((vector_size(64)));
typedef std::uint8_t Bytes __attribute__((vector_size(64)));

template <class Vector>
static inline Vector loaded(const void* from) {
  Vector result;
  std::memcpy(&result, from, sizeof result);
  return result;
}

template <class From>
static inline __m512i widened(const void* from) {
  From narrow[16];
  std::memcpy(narrow, from, sizeof narrow);
  Ints result;
  for (int i = 0; i < 16; ++i) result[i] = narrow[i];
  return (__m512i)result;
}

static inline int saturated(int value, int most) { return value > most ? most : value < -most - 1 ? -most - 1 : value; }

}  // namespace emulated

static inline __m512i _mm512_loadu_si512(const void* from) { return emulated::loaded<__m512i>(from); }
static inline void _mm512_storeu_si512(void* to, __m512i a) { std::memcpy(to, &a, sizeof a); }
static inline __m512 _mm512_loadu_ps(const void* from) { return emulated::loaded<__m512>(from); }
static inline void _mm512_storeu_ps(void* to, __m512 a) { std::memcpy(to, &a, sizeof a); }
static inline __m128i _mm_loadu_si128(const __m128i* from) { return emulated::loaded<__m128i>(from); }
static inline __m256i _mm256_loadu_si256(const __m256i* from) { return emulated::loaded<__m256i>(from); }

static inline void _mm_storeu_si128(__m128i* to, __m128i a) { std::memcpy(to, &a, sizeof a); }

static inline __m128i _mm_packs_epi32(__m128i a, __m128i b) {
  std::int32_t wide[8];
  std::int16_t narrow[8];
  std::memcpy(wide, &a, sizeof a), std::memcpy(wide + 4, &b, sizeof b);
  for (int i = 0; i < 8; ++i) narrow[i] = (std::int16_t)emulated::saturated(wide[i], 32767);
  return emulated::loaded<__m128i>(narrow);
}
static inline __m128i _mm_packs_epi16(__m128i a, __m128i b) {
  std::int16_t wide[16];
  std::int8_t narrow[16];
  std::memcpy(wide, &a, sizeof a), std::memcpy(wide + 8, &b, sizeof b);
  for (int i = 0; i < 16; ++i) narrow[i] = (std::int8_t)emulated::saturated(wide[i], 127);
  return emulated::loaded<__m128i>(narrow);
}

static inline __m512i _mm512_set1_epi8(char value) { return (__m512i)(emulated::Bytes{} + (std::uint8_t)value); }
static inline __m512i _mm512_set1_epi32(int value) { return (__m512i)(emulated::Ints{} + value); }
static inline __m512 _mm512_set1_ps(float value) {
  __m512 result;
  for (int i = 0; i < 16; ++i) result[i] = value;
  return result;
}

static inline __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
static inline __m512i _mm512_srli_epi16(__m512i a, int n) { return (__m512i)((emulated::Halves)a >> n); }
static inline __m512i _mm512_slli_epi16(__m512i a, int n) { return (__m512i)((emulated::Halves)a << n); }
static inline __m512i _mm512_srli_epi32(__m512i a, int n) { return (__m512i)((emulated::Words)a >> n); }
static inline __m512i _mm512_slli_epi32(__m512i a, int n) { return (__m512i)((emulated::Words)a << n); }
static inline __m512i _mm512_add_epi32(__m512i a, __m512i b) {
  return (__m512i)((emulated::Words)a + (emulated::Words)b);
}
static inline __m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table) {
  __m512i result = {};
  for (int minterm = 0; minterm < 8; ++minterm) {
    if (table >> minterm & 1) result |= (minterm & 4 ? a : ~a) & (minterm & 2 ? b : ~b) & (minterm & 1 ? c : ~c);
  }
  return result;
}

static inline __m512i _mm512_cvtepu8_epi32(__m128i a) { return emulated::widened<std::uint8_t>(&a); }
static inline __m512i _mm512_cvtepu16_epi32(__m256i a) { return emulated::widened<std::uint16_t>(&a); }
static inline __m512 _mm512_cvtepi32_ps(__m512i a) { return __builtin_convertvector((emulated::Ints)a, __m512); }
static inline __m512 _mm512_castsi512_ps(__m512i a) { return (__m512)a; }
static inline __m512 _mm512_cvtph_ps(__m256i a) {
  _Float16 halves[16];
  std::memcpy(halves, &a, sizeof halves);
  __m512 result;
  for (int i = 0; i < 16; ++i) result[i] = static_cast<float>(halves[i]);
  return result;
}
static inline float _mm512_reduce_add_ps(__m512 a) {
  float sums[16];
  std::memcpy(sums, &a, sizeof a);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

static inline __m512 _mm512_add_ps(__m512 a, __m512 b) { return a + b; }
static inline __m512 _mm512_sub_ps(__m512 a, __m512 b) { return a - b; }
static inline __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
static inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  __m512 result;
  for (int i = 0; i < 16; ++i) result[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return result;
}
static inline __m512 _mm512_fnmadd_ps(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(-a, b, c); }

static inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
  std::int32_t lanes[16];
  std::uint8_t codes[64];
  std::int8_t values[64];
  std::memcpy(lanes, &sum, sizeof lanes);
  std::memcpy(codes, &a, sizeof codes);
  std::memcpy(values, &b, sizeof values);
  for (int i = 0; i < 64; ++i) lanes[i / 4] += codes[i] * values[i];
  return emulated::loaded<__m512i>(lanes);
}
