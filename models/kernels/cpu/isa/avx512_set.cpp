// The AVX-512 set, and its loops over plain arrays.
#include "avx512_intrinsics.h"
#include "avx512_kernels.h"

namespace bitpress {
namespace {

// The first `left` of 16 or 64 lanes.
inline __mmask16 lanes_16(int64_t left) {
  return left < 16 ? static_cast<__mmask16>((1u << left) - 1) : static_cast<__mmask16>(0xFFFF);
}
inline __mmask64 lanes_64(int64_t left) { return left < 64 ? (1ull << left) - 1 : ~0ull; }

void max_u8(uint8_t* out, const uint8_t* in, int64_t count) {
  for (int64_t i = 0; i < count; i += 64) {
    const __mmask64 m = lanes_64(count - i);
    _mm512_mask_storeu_epi8(out + i, m,
                            _mm512_max_epu8(_mm512_maskz_loadu_epi8(m, out + i),
                                            _mm512_maskz_loadu_epi8(m, in + i)));
  }
}

// A NaN on either side stays: VMAXPS alone gives its second operand where one is NaN.
void max_f32(float* out, const float* in, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 m = lanes_16(count - i);
    const __m512 a = _mm512_maskz_loadu_ps(m, out + i), b = _mm512_maskz_loadu_ps(m, in + i);
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    _mm512_mask_storeu_ps(out + i, m, _mm512_mask_mov_ps(_mm512_max_ps(a, b), nan, a));
  }
}

void add_f32(float* out, const float* in, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 m = lanes_16(count - i);
    _mm512_mask_storeu_ps(out + i, m,
                          _mm512_add_ps(_mm512_maskz_loadu_ps(m, out + i),
                                        _mm512_maskz_loadu_ps(m, in + i)));
  }
}

void numbers_of_codes(const uint8_t* in, float step, float low, float* out, int64_t count) {
  const __m512 width = _mm512_set1_ps(step), first = _mm512_set1_ps(low);
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 m = lanes_16(count - i);
    const __m512 q = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, in + i)));
    _mm512_mask_storeu_ps(out + i, m, _mm512_add_ps(_mm512_mul_ps(q, width), first));
  }
}

constexpr KernelSet kSet = {BP_AVX512, "avx512", kAvx512Products,  avx512_finish,
                            max_u8,    max_f32,  add_f32,          numbers_of_codes,
                            avx512_ceiling};

}  // namespace

const ProductKernel* const kAvx512Products[] = {&kAvx512LookupI16, &kAvx512ExpandI8,
                                                &kAvx512LookupF32, &kAvx512MultiplyF32, nullptr};

const KernelSet* avx512_kernels() { return &kSet; }

}  // namespace bitpress
