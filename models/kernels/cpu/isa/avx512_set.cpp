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

void greatest_u8(const uint8_t* const* in, int64_t inputs, int64_t count, uint8_t* out) {
  for (int64_t c = 0; c < count; c += 64) {
    const __mmask64 m = lanes_64(count - c);
    __m512i most = _mm512_maskz_loadu_epi8(m, in[0] + c);
    for (int64_t i = 1; i < inputs; ++i) {
      most = _mm512_max_epu8(most, _mm512_maskz_loadu_epi8(m, in[i] + c));
    }
    _mm512_mask_storeu_epi8(out + c, m, most);
  }
}

// VMAXPS gives its second operand where one is NaN: where there was one is kept apart, so that one
// maximum need not wait for more than the one before. kVectors at a time share the inputs' loop.
template <int kVectors>
inline void greatest_of(const float* const* in, int64_t inputs, int64_t c, __mmask16 m,
                        float* out) {
  __m512 most[kVectors];
  __mmask16 nan[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    most[v] = _mm512_maskz_loadu_ps(m, in[0] + c + 16 * v);
    nan[v] = _mm512_cmp_ps_mask(most[v], most[v], _CMP_UNORD_Q);
  }
  for (int64_t i = 1; i < inputs; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m512 x = _mm512_maskz_loadu_ps(m, in[i] + c + 16 * v);
      nan[v] = _kor_mask16(nan[v], _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q));
      most[v] = _mm512_max_ps(most[v], x);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    most[v] = _mm512_mask_mov_ps(most[v], nan[v], _mm512_set1_ps(__builtin_nanf("")));
    _mm512_mask_storeu_ps(out + c + 16 * v, m, most[v]);
  }
}

void greatest_f32(const float* const* in, int64_t inputs, int64_t count, float* out) {
  int64_t c = 0;
  for (; c + 64 <= count; c += 64) greatest_of<4>(in, inputs, c, 0xFFFF, out);
  for (; c < count; c += 16) greatest_of<1>(in, inputs, c, lanes_16(count - c), out);
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

constexpr const ProductKernel* kProducts[] = {&kAvx512LookupI16, &kAvx512ExpandI8,
                                             &kAvx512LookupF32, &kAvx512MultiplyF32, nullptr};

constexpr KernelSet kAvx512 = {
    BP_AVX512,    "avx512",     kProducts, avx512_finish,
    greatest_u8,  greatest_f32, add_f32,   numbers_of_codes,
};

}  // namespace

const KernelSet* avx512_kernels() { return &kAvx512; }

}  // namespace bitpress
