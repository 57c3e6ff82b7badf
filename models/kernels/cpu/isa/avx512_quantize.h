// Codes of float32 numbers: q = clamp(floor((x - low) / step + 0.5), 0, 2^bits - 1), each operation
// rounded to binary32, as docs/FORMAT.md, 4.2 has it. NaN becomes 0.
#pragma once
#include <math.h>
#include <string.h>

#include "../kernel_set.h"
#include "avx512_intrinsics.h"

namespace bitpress {
namespace {

// Division is the slowest operation in finishing a result, and can be had exactly without it.
//
// Let r = RN(1 / step) and e = RN(1 / step - r), RN being rounding to binary32. Then r + e is 1 / step
// but for a factor within 1 +- 2^-48, and t * r + RN(t * e), which is rounded once, in an FMA, is
// t / step but for a factor within 1 +- 2^-46 before that rounding. It is rounded to something else
// than RN(t / step) only if t / step is nearer than that to the middle m of two neighbours. Let t and
// step be scaled to integers below 2^24 and 2^21, and m, which has 25 bits, to M. T * 2^j = M * S
// is impossible unless S is a power of two, as M is odd with 25 bits and T has 24, and where S is a power of two
// all is exact. So T * 2^j and M * S differ by 1 at least, a factor of 1 +- 2^-46 from one another.
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
};

inline Quantizer quantizer_of(const Finish& finish) {
  Quantizer q;
  q.one_bit = finish.bits == 1;
  q.cut = finish.bits < 8;
  uint32_t bits;
  memcpy(&bits, &finish.step, sizeof bits);
  q.reciprocal = (bits & 0xF) == 0 && finish.step >= 0x1p-60f && finish.step <= 0x1p60f;
  q.minus_low = _mm512_set1_ps(-finish.low);
  q.middle = _mm512_set1_ps(finish.low + finish.step / 2);
  q.step = _mm512_set1_ps(finish.step);
  const float r = 1.0f / finish.step;
  q.r = _mm512_set1_ps(r);
  // 1 - r * step is exact in binary64.
  q.e = _mm512_set1_ps(
      static_cast<float>((1.0 - static_cast<double>(r) * finish.step) / finish.step));
  q.greatest = _mm512_set1_epi32((1 << finish.bits) - 1);
  return q;
}

template <int P>
inline void codes_of(const Quantizer& q, bool from_zero, const __m512 (&x)[P], __m128i (&codes)[P]) {
  if (q.one_bit) {
    for (int p = 0; p < P; ++p)
      codes[p] = _mm_maskz_set1_epi8(_mm512_cmp_ps_mask(x[p], q.middle, _CMP_GE_OQ), 1);
    return;
  }
  __m512 t[P], quotient[P];
  // VMAXPS gives its second operand where one is NaN. Below 0, q is 0 as at 0.
  for (int p = 0; p < P; ++p)
    t[p] = _mm512_max_ps(from_zero ? x[p] : added(x[p], q.minus_low), _mm512_setzero_ps());
  if (q.reciprocal) {
    for (int p = 0; p < P; ++p)
      quotient[p] = _mm512_fmadd_ps(t[p], q.r, _mm512_mul_ps(t[p], q.e));
  } else {
    for (int p = 0; p < P; ++p) quotient[p] = _mm512_div_ps(t[p], q.step);
  }
  for (int p = 0; p < P; ++p) {
    // What is too large, infinity, or NaN for want of range becomes 2^32 - 1.
    __m512i level = _mm512_cvttps_epu32(added(quotient[p], _mm512_set1_ps(0.5f)));
    if (q.cut) level = _mm512_min_epu32(level, q.greatest);
    codes[p] = _mm512_cvtusepi32_epi8(level);
    // Else gcc makes one instruction of this and a store under a mask, a slow one.
    pin(codes[p]);
  }
}

}  // namespace
}  // namespace bitpress
