// Codes of float32 numbers: q = clamp(floor((x - low) / step + 0.5), 0, 2^bits - 1), each operation
// rounded to binary32, as docs/FORMAT.md, 4.2 has it. NaN becomes 0.
#pragma once
#include <math.h>
#include <string.h>

#include "../kernel_set.h"
#include "avx512_intrinsics.h"

namespace bitpress {
namespace {

// Division is slow on many processors, and can be had exactly without it.
//
// RN is rounding to binary32. Let r = RN(1 / step), which is (1 + a) / step with |a| <= 2^-24, and
// e = RN(r * (1 - r * step)), where the bracket is -a, exactly. Then r + e is 1 / step but for a
// factor within 1 +- 2^-47, and t * r + RN(t * e) is t / step but for one within 1 +- 2^-46. An FMA
// rounds that once. The result is another than RN(t / step) only where t / step is nearer than that
// to the middle of two neighbours of binary32, M * 2^i with M odd and of 25 bits. Write t as T *
// 2^j and step as S * 2^k, T of 24 bits and S of at most 20. T * 2^j and M * S * 2^(i + k) are not
// equal, for M, odd, does not divide T, which is less than M. Divided by the lesser of the two
// powers of 2, both are integers, and differ by 1 at least; and one of them is just M * S, below
// 2^45, or just T, below 2^24. So they differ by a factor beyond 1 +- 2^-45.
//
// So steps of at most 20 significant bits (bitpress writes 16) are divided by in this way; others,
// and those so small or large that something could underflow, by VDIVPS.
struct Quantizer {
  bool one_bit, reciprocal;
  bool cut;  // the greatest code is less than 255
  __m512 minus_low, step;
  __m512 middle;  // of the codes of one bit
  __m512 r, e;
  __m512i greatest;

  explicit Quantizer(const Finish& finish) {
    one_bit = finish.bits == 1;
    cut = finish.bits < 8;
    uint32_t bits;
    memcpy(&bits, &finish.step, sizeof bits);
    reciprocal = (bits & 0xF) == 0 && finish.step >= 0x1p-60f && finish.step <= 0x1p60f;
    minus_low = _mm512_set1_ps(-finish.low);
    middle = _mm512_set1_ps(finish.low + finish.step / 2);
    step = _mm512_set1_ps(finish.step);
    const __m128 one = _mm_set_ss(1.0f), s = _mm_set_ss(finish.step);
    const __m128 quotient = _mm_div_ss(one, s);
    r = _mm512_broadcastss_ps(quotient);
    e = _mm512_broadcastss_ps(_mm_mul_ss(quotient, _mm_fnmadd_ss(quotient, s, one)));
    greatest = _mm512_set1_epi32((1 << finish.bits) - 1);
  }
};

// Codes of N vectors of numbers. from_zero: low is 0.
template <int N>
inline void codes_of(const Quantizer& q, bool from_zero, const __m512* x, __m128i* codes) {
  if (q.one_bit) {
    for (int i = 0; i < N; ++i)
      codes[i] = _mm_maskz_set1_epi8(_mm512_cmp_ps_mask(x[i], q.middle, _CMP_GE_OQ), 1);
    return;
  }
  __m512 t[N], quotient[N];
  // VMAXPS gives its second operand where one is NaN. Below 0, q is 0 as at 0.
  for (int i = 0; i < N; ++i)
    t[i] = _mm512_max_ps(from_zero ? x[i] : added(x[i], q.minus_low), _mm512_setzero_ps());
  if (q.reciprocal) {
    for (int i = 0; i < N; ++i) quotient[i] = _mm512_fmadd_ps(t[i], q.r, _mm512_mul_ps(t[i], q.e));
  } else {
    for (int i = 0; i < N; ++i) quotient[i] = _mm512_div_ps(t[i], q.step);
  }
  for (int i = 0; i < N; ++i) {
    // What is too large, infinity, or NaN for want of range becomes 2^32 - 1.
    __m512i level = _mm512_cvttps_epu32(added(quotient[i], _mm512_set1_ps(0.5f)));
    if (q.cut) level = _mm512_min_epu32(level, q.greatest);
    codes[i] = _mm512_cvtusepi32_epi8(level);
    // Else gcc makes one instruction of this and a store under a mask, a slow one.
    pin(codes[i]);
  }
}

}  // namespace
}  // namespace bitpress
