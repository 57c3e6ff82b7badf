// What follows a product, on 16 channels at a time. Each operation is rounded once, and NaN is kept:
// VMAXPS and VMINPS give their second operand where one of the two is NaN, or where both are zeros.
#include <string.h>

#include "avx2_kernels.h"
#include "avx2_tiles.h"

namespace bitpress {
namespace {

constexpr int kVectorsAtOnce = 2;
constexpr int kAtOnce = 8 * kVectorsAtOnce;

// A number for each of the channels at hand, or nothing.
struct PerChannel {
  bool given;
  __m256 v[kVectorsAtOnce];
};

// Reads `count` of 16 numbers; the others become 0.
template <typename Number>
inline __m256i load_some(const Number* from, int vector, int count) {
  static_assert(sizeof(Number) == 4);
  if (count == kAtOnce) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 8 * vector));
  }
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(count - 8 * vector), lane);
  return _mm256_maskload_epi32(reinterpret_cast<const int*>(from + 8 * vector), mask);
}

inline PerChannel per_channel(const float* numbers, int64_t c, int count) {
  PerChannel result{numbers != nullptr, {_mm256_setzero_ps(), _mm256_setzero_ps()}};
  if (!result.given) return result;
  for (int i = 0; i < kVectorsAtOnce; i++) {
    result.v[i] = _mm256_castsi256_ps(load_some(numbers + c, i, count));
  }
  return result;
}

// z of one basis for 8 channels, rounded to binary32.
inline __m256 load_sums(const Finish& finish, int64_t basis, int64_t p, int64_t c, int vector,
                        int count) {
  // Sums may be read up to the next multiple of 16 channels.
  const int64_t at = basis * finish.basis_pitch + p * finish.sums_pitch + c + 8 * vector;
  if (!finish.integer) return _mm256_loadu_ps(static_cast<const float*>(finish.sums) + at);
  __m256i sum = _mm256_loadu_si256(
      reinterpret_cast<const __m256i*>(static_cast<const int32_t*>(finish.sums) + at));
  if (finish.doubled) sum = _mm256_add_epi32(sum, sum);
  if (finish.window_sums) {
    sum = _mm256_sub_epi32(sum, _mm256_set1_epi32(finish.window_sums[p]));
  }
  if (finish.offset) {
    const int32_t* offset = finish.offset + basis * finish.offset_pitch + c;
    sum = _mm256_sub_epi32(sum, load_some(offset, vector, count));
  }
  return _mm256_cvtepi32_ps(sum);
}

inline __m256 sum_bases(const Finish& finish, int64_t p, int64_t c, int vector, int count) {
  __m256 x = _mm256_setzero_ps();
  for (int64_t k = 0; k < finish.bases; k++) {
    __m256 z = load_sums(finish, k, p, c, vector, count);
    if (finish.base_scale) {
      const float* scale = finish.base_scale + k * finish.base_scale_pitch + c;
      z = _mm256_mul_ps(_mm256_castsi256_ps(load_some(scale, vector, count)), z);
    }
    x = k == 0 ? z : _mm256_add_ps(x, z);
  }
  return x;
}

inline __m256 activate(const Finish& finish, __m256 slope, __m256 x) {
  switch (finish.activation) {
    case BP_RELU:
      return _mm256_max_ps(_mm256_setzero_ps(), x);
    case BP_HARDTANH:
      return _mm256_min_ps(_mm256_set1_ps(finish.activation_high),
                           _mm256_max_ps(_mm256_set1_ps(finish.activation_low), x));
    case BP_PRELU:
      return _mm256_blendv_ps(_mm256_mul_ps(slope, x), x,
                              _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GE_OQ));
    default:
      return x;
  }
}

// NaN becomes 0: VMAXPS gives its second operand.
inline __m256i codes(const Finish& finish, __m256 x) {
  if (finish.bits == 1) {
    const __m256 threshold = _mm256_set1_ps(finish.low + finish.step / 2.0f);
    return _mm256_srli_epi32(_mm256_castps_si256(_mm256_cmp_ps(x, threshold, _CMP_GE_OQ)), 31);
  }
  const __m256 quotient =
      _mm256_div_ps(_mm256_sub_ps(x, _mm256_set1_ps(finish.low)), _mm256_set1_ps(finish.step));
  __m256 level = _mm256_add_ps(quotient, _mm256_set1_ps(0.5f));
  level = _mm256_max_ps(level, _mm256_setzero_ps());
  level = _mm256_min_ps(level, _mm256_set1_ps(static_cast<float>((1 << finish.bits) - 1)));
  // Bounds are whole numbers: cutting the fraction off after them is floor before them.
  return _mm256_cvttps_epi32(level);
}

inline __m128i to_bytes(__m256i first, __m256i last) {
  const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, last), 0xD8);
  return _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
}

void store(const Finish& finish, int64_t at, int count, const __m256 (&x)[kVectorsAtOnce]) {
  if (finish.out_f32) {
    alignas(32) float some[kAtOnce];
    float* to = count == kAtOnce ? finish.out_f32 + at : some;
    for (int i = 0; i < kVectorsAtOnce; i++) _mm256_storeu_ps(to + 8 * i, x[i]);
    if (count != kAtOnce) memcpy(finish.out_f32 + at, some, static_cast<size_t>(count) * 4);
  }
  if (finish.out_u8) {
    const __m128i q = to_bytes(codes(finish, x[0]), codes(finish, x[1]));
    if (count == kAtOnce) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(finish.out_u8 + at), q);
    } else {
      memcpy(finish.out_u8 + at, &q, static_cast<size_t>(count));
    }
  }
}

}  // namespace

void avx2_finish(const Finish& finish, int64_t pixels, int64_t channels) {
  for (int64_t c = 0; c < channels; c += kAtOnce) {
    const int count = channels - c < kAtOnce ? static_cast<int>(channels - c) : kAtOnce;
    const PerChannel gain = per_channel(finish.gain, c, count);
    const PerChannel shift = per_channel(finish.shift, c, count);
    const PerChannel slope = per_channel(finish.slope, c, count);
    for (int64_t p = 0; p < pixels; p++) {
      const int64_t at = p * finish.pitch + c;
      __m256 x[kVectorsAtOnce];
      BITPRESS_UNROLL
      for (int i = 0; i < kVectorsAtOnce; i++) {
        x[i] = sum_bases(finish, p, c, i, count);
        if (gain.given) x[i] = _mm256_mul_ps(gain.v[i], x[i]);
        if (shift.given) x[i] = _mm256_add_ps(x[i], shift.v[i]);
        if (finish.residual) {
          const __m256i residual = load_some(finish.residual + at, i, count);
          x[i] = _mm256_add_ps(x[i], _mm256_castsi256_ps(residual));
        }
        x[i] = activate(finish, slope.v[i], x[i]);
      }
      store(finish, at, count, x);
    }
  }
}

}  // namespace bitpress
