// Attention to bfloat16 keys where the CPU multiplies pairs of bfloat16 (AVX512-BF16): half the instructions. For
// avx512.cpp alone; another CPU with AVX-512 runs what rows.h has.

#pragma once

#include "rows.h"

#define MOESAIC_BF16 __attribute__((target("avx512bf16,avx512bw"), always_inline)) inline

namespace moesaic {
namespace {

constexpr int kPair = 2;  // neighbouring bfloat16 in a lane of 32 bits

MOESAIC_BF16 __m512 add_pairs(__m512 sum, const std::uint16_t* a, __m512i b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(a), (__m512bh)b);
}

// The sums of the lanes of four vectors, each in four parts: part i of vector v in lane 4 i + v.
MOESAIC_BF16 __m512 parts_of_four(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 low = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd)));
  const __m512 high = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd)));
  return _mm512_add_ps(low, high);
}

MOESAIC_BF16 __m512 neighbours(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
}

// Scores of 16 keys of `size` numbers, a multiple of 32, that lie one after the other.
MOESAIC_BF16 void score_pairs(const std::uint16_t* query, const std::uint16_t* keys, int size, float scale, float* scores) {
  __m512 parts[4];
  for (int f = 0; f < 4; ++f) {
    const std::uint16_t* four = keys + std::ptrdiff_t{4 * f} * size;
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int k = 0; k < size; k += 32) {
      const __m512i with = _mm512_loadu_si512(query + k);
      for (int s = 0; s < 4; ++s) sums[s] = add_pairs(sums[s], four + s * size + k, with);
    }
    parts[f] = parts_of_four(sums[0], sums[1], sums[2], sums[3]);
  }
  const __m512 all = neighbours(neighbours(parts[0], parts[1]), neighbours(parts[2], parts[3]));
  _mm512_storeu_ps(scores, _mm512_mul_ps(all, _mm512_set1_ps(scale)));
}

MOESAIC_BF16 __m512i widened(const std::uint16_t* from) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// Rows of values two by two, number k of both beside each other, `size` a multiple of 16. Rows from `count` on are zero.
MOESAIC_BF16 void pair_values(const std::uint16_t* values, int count, int size, std::uint16_t* pairs) {
  for (int j = 0; j < kKeysAtATime; j += kPair) {
    for (int k = 0; k < size; k += 16) {
      const std::uint16_t* row = values + std::ptrdiff_t{j} * size + k;
      const __m512i one = j < count ? widened(row) : _mm512_setzero_si512();
      const __m512i other = j + 1 < count ? widened(row + size) : _mm512_setzero_si512();
      const __m512i both = _mm512_or_si512(one, _mm512_slli_epi32(other, 16));
      _mm512_storeu_si512(pairs + std::ptrdiff_t{j} * size + kPair * k, both);
    }
  }
}

// out = out * kept + sum of shares[j] * value j, `vectors` of 16 numbers from number k on.
template <int vectors>
MOESAIC_BF16 void add_pairs_of_values(const float* shares, const std::uint16_t* pairs, int size, float kept, float* out, int k) {
  __m512 sums[vectors];
  for (int s = 0; s < vectors; ++s) sums[s] = _mm512_mul_ps(_mm512_loadu_ps(out + k + 16 * s), _mm512_set1_ps(kept));
  std::uint32_t two[kKeysAtATime / kPair];
  const __m256bh narrow = _mm512_cvtneps_pbh(_mm512_loadu_ps(shares));
  std::memcpy(two, &narrow, sizeof two);
  for (int j = 0; j < kKeysAtATime / kPair; ++j) {
    const __m512i share = _mm512_set1_epi32(static_cast<int>(two[j]));
    const std::uint16_t* from = pairs + std::ptrdiff_t{kPair * j} * size + kPair * k;
    for (int s = 0; s < vectors; ++s) sums[s] = add_pairs(sums[s], from + kPair * 16 * s, share);
  }
  for (int s = 0; s < vectors; ++s) _mm512_storeu_ps(out + k + 16 * s, sums[s]);
}

template <class V>
__attribute__((target("avx512bf16,avx512bw"))) void attend_bf16(const float* queries, int count, Keys all, Attended found,
                                                                float* scratch) {
  constexpr int most_queries = 16, most_size = 256;
  if (all.dtype != DType::bfloat16 || all.size % 32 || all.value_size % 16 || all.size > most_size || count > most_queries) {
    return attend<V>(queries, count, all, found, scratch);
  }
  std::uint16_t narrow[most_queries * most_size];
  for (int i = 0; i < count * all.size; ++i) narrow[i] = to_bfloat16(queries[i]);
  for (int q = 0; q < count; ++q) {
    found.tops[q] = -__builtin_inff();
    found.sums[q] = 0;
  }
  std::memset(found.values, 0, sizeof(float) * count * all.value_size);
  auto* end = reinterpret_cast<std::uint16_t*>(scratch);  // the last keys, with zeros after them
  auto* pairs = end + std::ptrdiff_t{kKeysAtATime} * all.size;
  for (int first = 0; first < all.count; first += kKeysAtATime) {
    const int few = all.count - first < kKeysAtATime ? all.count - first : kKeysAtATime;
    const auto* keys = static_cast<const std::uint16_t*>(all.keys) + std::ptrdiff_t{first} * all.size;
    const auto* values = static_cast<const std::uint16_t*>(all.values) + std::ptrdiff_t{first} * all.value_size;
    if (few < kKeysAtATime) {
      std::memset(end, 0, sizeof(std::uint16_t) * kKeysAtATime * all.size);
      std::memcpy(end, keys, sizeof(std::uint16_t) * few * all.size);
      keys = end;
    }
    pair_values(values, few, all.value_size, pairs);
    for (int q = 0; q < count; ++q) {
      float shares[kKeysAtATime];
      score_pairs(narrow + std::ptrdiff_t{q} * all.size, keys, all.size, all.scale, shares);
      const float kept = share_out<V>(shares, all.seen ? all.seen + first : nullptr, few, found.tops[q], found.sums[q]);
      if (found.sums[q] == 0) continue;
      float* out = found.values + std::ptrdiff_t{q} * all.value_size;
      int k = 0;
      for (; k + 128 <= all.value_size; k += 128) add_pairs_of_values<8>(shares, pairs, all.value_size, kept, out, k);
      for (; k < all.value_size; k += 16) add_pairs_of_values<1>(shares, pairs, all.value_size, kept, out, k);
    }
  }
}

}  // namespace
}  // namespace moesaic
