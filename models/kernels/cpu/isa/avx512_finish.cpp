// What follows a product (docs/FORMAT.md, 4.4): 16 channels at a time, one pixel after the other, so
// that what belongs to the channels stays in registers. No operation is fused with another.
#include "avx512_intrinsics.h"
#include "avx512_kernels.h"
#include "avx512_quantize.h"

namespace bitpress {
namespace {

constexpr int kLanes = 16;

// What is known of a whole tile, so that the loop over its pixels need not ask.
template <bool kInteger, int kActivation, bool kCodes>
struct Variant {
  static constexpr bool integer = kInteger;
  static constexpr int activation = kActivation;
  static constexpr bool codes = kCodes;
};

struct Channels {
  __mmask16 mask;
  int64_t first;
  __m512 gain, shift, slope;
  __m512i offset;    // of the first basis
  __m512 base_scale;
};

inline __m512 load_or(const float* numbers, const Channels& channels, float otherwise) {
  return numbers != nullptr ? _mm512_maskz_loadu_ps(channels.mask, numbers + channels.first)
                            : _mm512_set1_ps(otherwise);
}

// z of one basis, in binary32.
template <bool kInteger>
inline __m512 load_sums(const Finish& finish, int64_t basis, int64_t pixel, int64_t channel,
                        __m512i offset) {
  const int64_t at = basis * finish.basis_pitch + pixel * finish.sums_pitch + channel;
  if constexpr (!kInteger) {
    return _mm512_loadu_ps(static_cast<const float*>(finish.sums) + at);
  } else {
    __m512i z = _mm512_loadu_si512(static_cast<const int32_t*>(finish.sums) + at);
    z = _mm512_sll_epi32(z, _mm_cvtsi32_si128(finish.doubled));
    if (finish.window_sums != nullptr)
      z = _mm512_sub_epi32(z, _mm512_set1_epi32(finish.window_sums[pixel]));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(z, offset));
  }
}

template <bool kInteger>
inline __m512 sum_of_bases(const Finish& finish, int64_t pixel, const Channels& channels) {
  __m512 x = load_sums<kInteger>(finish, 0, pixel, channels.first, channels.offset);
  if (finish.base_scale != nullptr) x = _mm512_mul_ps(channels.base_scale, x);
  for (int64_t k = 1; k < finish.bases; ++k) {
    __m512i offset = _mm512_setzero_si512();
    if (finish.offset != nullptr)
      offset = _mm512_maskz_loadu_epi32(
          channels.mask, finish.offset + k * finish.offset_pitch + channels.first);
    __m512 z = load_sums<kInteger>(finish, k, pixel, channels.first, offset);
    if (finish.base_scale != nullptr)
      z = _mm512_mul_ps(load_or(finish.base_scale + k * finish.base_scale_pitch, channels, 0), z);
    x = _mm512_add_ps(x, z);
  }
  return x;
}

// VMAXPS and VMINPS give their second operand where one is NaN: x stays NaN.
template <int kActivation>
inline __m512 activate(const Finish& finish, const Channels& channels, __m512 x) {
  if constexpr (kActivation == BP_RELU) {
    return _mm512_max_ps(_mm512_setzero_ps(), x);
  } else if constexpr (kActivation == BP_HARDTANH) {
    x = _mm512_max_ps(_mm512_set1_ps(finish.activation_low), x);
    return _mm512_min_ps(_mm512_set1_ps(finish.activation_high), x);
  } else if constexpr (kActivation == BP_PRELU) {
    const __mmask16 stays = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ);
    return _mm512_mask_mov_ps(_mm512_mul_ps(channels.slope, x), stays, x);
  } else {
    return x;
  }
}

template <class V>
void finish_tile(const Finish& finish, int64_t pixels, int64_t count) {
  const Quantizer quantizer = quantizer_of(finish);
  for (int64_t c = 0; c < count; c += kLanes) {
    Channels channels;
    const int64_t left = count - c;
    channels.mask = static_cast<__mmask16>(left < kLanes ? (1 << left) - 1 : 0xFFFF);
    channels.first = c;
    channels.gain = load_or(finish.gain, channels, 1);
    channels.shift = load_or(finish.shift, channels, 0);
    channels.slope = load_or(finish.slope, channels, 0);
    channels.base_scale = load_or(finish.base_scale, channels, 1);
    channels.offset = finish.offset != nullptr
                          ? _mm512_maskz_loadu_epi32(channels.mask, finish.offset + c)
                          : _mm512_setzero_si512();
    for (int64_t p = 0; p < pixels; ++p) {
      const int64_t at = p * finish.pitch + c;
      __m512 x = sum_of_bases<V::integer>(finish, p, channels);
      if (finish.gain != nullptr) x = _mm512_mul_ps(channels.gain, x);
      if (finish.shift != nullptr) x = _mm512_add_ps(x, channels.shift);
      if (finish.residual != nullptr)
        x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(channels.mask, finish.residual + at));
      x = activate<V::activation>(finish, channels, x);
      if (finish.out_f32 != nullptr)
        _mm512_mask_storeu_ps(finish.out_f32 + at, channels.mask, x);
      if constexpr (V::codes)
        _mm_mask_storeu_epi8(finish.out_u8 + at, channels.mask, codes_of(quantizer, x));
    }
  }
}

template <bool kInteger, int kActivation>
void finish_activated(const Finish& finish, int64_t pixels, int64_t channels) {
  if (finish.out_u8 != nullptr)
    finish_tile<Variant<kInteger, kActivation, true>>(finish, pixels, channels);
  else
    finish_tile<Variant<kInteger, kActivation, false>>(finish, pixels, channels);
}

template <bool kInteger>
void finish_sums(const Finish& finish, int64_t pixels, int64_t channels) {
  switch (finish.activation) {
    case BP_RELU: return finish_activated<kInteger, BP_RELU>(finish, pixels, channels);
    case BP_HARDTANH: return finish_activated<kInteger, BP_HARDTANH>(finish, pixels, channels);
    case BP_PRELU: return finish_activated<kInteger, BP_PRELU>(finish, pixels, channels);
    default: return finish_activated<kInteger, BP_IDENTITY>(finish, pixels, channels);
  }
}

}  // namespace

void avx512_finish(const Finish& finish, int64_t pixels, int64_t channels) {
  if (finish.integer)
    finish_sums<true>(finish, pixels, channels);
  else
    finish_sums<false>(finish, pixels, channels);
}

}  // namespace bitpress
