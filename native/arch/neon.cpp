// Arm with the dot product extension: a vector is a quarter of a tile row, four lanes. `sdot` multiplies signed bytes, which
// codes of up to 15 are; eight bits are two times four.

#include <arm_neon.h>

#include "rows.h"

namespace moesaic {
namespace {

struct Neon {
  static constexpr int lanes = 4, units = 4, few_units = 4, few_rows = 2, panel_rows = 4, few_pays = 4, wide = 4;
  static constexpr bool whole_bytes = false, keeps_totals = false;
  template <int bits>
  static constexpr int few_together = few_rows;

  using Codes = uint8x16_t;
  using Floats = float32x4_t;
  using Ints = int32x4_t;

  static void narrow(const Ints4 (&quads)[kQuads], std::int8_t* to) {
    const int16x8_t low = vcombine_s16(vqmovn_s32((Ints)quads[0]), vqmovn_s32((Ints)quads[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32((Ints)quads[2]), vqmovn_s32((Ints)quads[3]));
    vst1q_s8(to, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
  }
  static Codes load(const std::uint8_t* from) { return vld1q_u8(from); }
  static void store(std::uint8_t* to, Codes codes) { vst1q_u8(to, codes); }
  template <int mask>
  static Codes keep(Codes codes) {
    return vandq_u8(codes, vdupq_n_u8(mask));
  }
  template <int shift>  // to the left when negative
  static Codes down(Codes codes) {
    if constexpr (shift > 0) return vshrq_n_u8(codes, shift);
    if constexpr (shift < 0) return vshlq_n_u8(codes, -shift);
    return codes;
  }
  template <int mask_a, int mask_b>
  static Codes merge(Codes a, Codes b) {
    return vorrq_u8(keep<mask_a>(a), keep<mask_b>(b));
  }
  template <int c>
  static Floats column(Codes codes) {
    return vcvtq_f32_u32(vandq_u32(vshlq_u32(vreinterpretq_u32_u8(codes), vdupq_n_s32(-8 * c)), vdupq_n_u32(255)));
  }

  static Floats load(const float* from) { return vld1q_f32(from); }
  static void store(float* to, Floats a) { vst1q_f32(to, a); }
  static Floats fill(float value) { return vdupq_n_f32(value); }
  static Floats from_bytes(const std::uint8_t* from) {
    std::uint32_t four;
    std::memcpy(&four, from, sizeof four);
    const uint16x8_t wide = vmovl_u8(vcreate_u8(four));
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide)));
  }
  static Floats from_bfloat16(const std::uint16_t* from) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16));
  }
  static Floats from_float16(const std::uint16_t* from) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))); }
  static float total(Floats a) { return vaddvq_f32(a); }
  static Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
  static Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static Floats fnma(Floats a, Floats b, Floats c) { return vfmsq_f32(c, a, b); }
  static Ints sum(Ints a, Ints b) { return vaddq_s32(a, b); }
  static Floats floats(Ints a) { return vcvtq_f32_s32(a); }

  static int8x16_t broadcast(const std::int8_t* quad) {
    std::int32_t four;
    std::memcpy(&four, quad, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
  }

  template <int bits>
  struct Dot {
    using Acc = int32x4_t;
    static constexpr int span = kGroupQuads, columns = kQuad, room = kUnlimited;
    static constexpr float magic = 0;
    static Acc start() { return vdupq_n_s32(0); }
    static MOESAIC_INLINE void add(Acc& acc, Codes codes, const std::int8_t* quad) {
      acc = vdotq_s32(acc, vreinterpretq_s8_u8(codes), broadcast(quad));
    }
    static Floats value(Acc acc) { return floats(acc); }
    static Floats scaled(Acc acc, float scale, float) { return mul(floats(acc), fill(scale)); }
  };
  static MOESAIC_INLINE void keep_alive(Ints& v) { __asm__ volatile("" : "+w"(v)); }
  static MOESAIC_INLINE void keep_alive(Floats& v) { __asm__ volatile("" : "+w"(v)); }
};

template <>
struct Neon::Dot<8> {
  using Acc = int32x4_t;
  static constexpr int span = kGroupQuads, columns = kQuad, room = kUnlimited;
  static constexpr float magic = 0;
  static Acc start() { return vdupq_n_s32(0); }
  static MOESAIC_INLINE void add(Acc& acc, Codes codes, const std::int8_t* quad) {
    const int8x16_t four = broadcast(quad);
    const Ints high = vdotq_s32(start(), vreinterpretq_s8_u8(down<4>(codes)), four);
    acc = vaddq_s32(vdotq_s32(acc, vreinterpretq_s8_u8(keep<15>(codes)), four), vshlq_n_s32(high, 4));
  }
  static Floats value(Acc acc) { return floats(acc); }
  static Floats scaled(Acc acc, float scale, float) { return mul(floats(acc), fill(scale)); }
};

constexpr Kernels kTable = table<Neon>("neon");

}  // namespace

const Kernels* neon_kernels() { return &kTable; }

}  // namespace moesaic
