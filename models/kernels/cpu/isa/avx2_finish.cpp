// What follows a product, on 16 channels at a time. Each operation is rounded once, and NaN is
// kept: VMAXPS and VMINPS give their second operand where one of the two is NaN, or where both are
// zeros.
//
// Parts that a product does not have are replaced by some that change no number, to the bit: a gain
// of 1, a shift of -0, a hardtanh between the infinities.
#include <math.h>
#include <string.h>

#include "avx2_kernels.h"
#include "avx2_registers.h"

namespace bitpress {
namespace {

constexpr int kAtOnce = 16;
constexpr int kVectors = kAtOnce / 8;

// Where z comes from: one plane of integers, one of float32, or whatever else there may be.
enum class Source { kIntegers, kNumbers, kBases };

// What is the same for all pixels of 16 channels.
struct Channels {
  int count;  // of them that there are
  __m256i present[kVectors];  // all ones for these
  __m256 gain[kVectors], shift[kVectors], slope[kVectors];
  __m256i offset[kVectors];
};

struct Bounds {
  __m256 least, greatest;
};

// What is not present reads as 0, and is not touched in memory.
inline __m256 load_present(const Channels& channels, const void* from, int i) {
  return _mm256_maskload_ps(static_cast<const float*>(from) + 8 * i, channels.present[i]);
}

inline __m256 load_or(const Channels& channels, const float* from, int64_t c, int i,
                      float missing) {
  return from ? load_present(channels, from + c, i) : _mm256_set1_ps(missing);
}

Channels channels_from(const Finish& finish, int64_t c, int count) {
  Channels result;
  result.count = count;
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (int i = 0; i < kVectors; ++i) {
    result.present[i] = _mm256_cmpgt_epi32(_mm256_set1_epi32(count - 8 * i), lane);
    result.gain[i] = load_or(result, finish.gain, c, i, 1.0f);
    result.shift[i] = load_or(result, finish.shift, c, i, -0.0f);
    result.slope[i] = load_or(result, finish.slope, c, i, 0.0f);
    result.offset[i] = _mm256_setzero_si256();
    if (finish.offset) {
      result.offset[i] = _mm256_castps_si256(load_present(result, finish.offset + c, i));
    }
  }
  return result;
}

Bounds bounds_of(const Finish& finish) {
  switch (finish.activation) {
    case BP_RELU:
      return {_mm256_setzero_ps(), _mm256_set1_ps(INFINITY)};
    case BP_HARDTANH:
      return {_mm256_set1_ps(finish.activation_low), _mm256_set1_ps(finish.activation_high)};
    default:
      return {_mm256_set1_ps(-INFINITY), _mm256_set1_ps(INFINITY)};
  }
}

// 8 sums from number `at` on, rounded to binary32. They may be read up to the next multiple of 16
// channels.
inline __m256 load_sums(const Finish& finish, int64_t at, int64_t p, __m256i offset) {
  const int32_t* from = static_cast<const int32_t*>(finish.sums) + at;
  __m256i sum = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  if (!finish.integer) return _mm256_castsi256_ps(sum);
  if (finish.doubled) sum = _mm256_add_epi32(sum, sum);
  if (finish.window_sums) {
    sum = _mm256_sub_epi32(sum, _mm256_set1_epi32(finish.window_sums[p]));
  }
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, offset));
}

inline __m256 sum_bases(const Finish& finish, const Channels& channels, int64_t p, int64_t c,
                        int i) {
  __m256 x = _mm256_setzero_ps();
  for (int64_t k = 0; k < finish.bases; ++k) {
    __m256i offset = _mm256_setzero_si256();
    if (finish.offset) {
      const int32_t* from = finish.offset + k * finish.offset_pitch + c;
      offset = _mm256_castps_si256(load_present(channels, from, i));
    }
    const int64_t at = k * finish.basis_pitch + p * finish.sums_pitch + c + 8 * i;
    __m256 z = load_sums(finish, at, p, offset);
    if (finish.base_scale) {
      const float* scale = finish.base_scale + k * finish.base_scale_pitch + c;
      z = _mm256_mul_ps(load_present(channels, scale, i), z);
    }
    x = k == 0 ? z : _mm256_add_ps(x, z);
  }
  return x;
}

// How numbers become codes.
struct Quantizer {
  bool one_bit;
  __m256 low, step, greatest;
  __m256 threshold;  // of one bit
};

Quantizer quantizer_of(const Finish& finish) {
  const int bits = finish.out_u8 ? finish.bits : 1;
  return {bits == 1, _mm256_set1_ps(finish.low), _mm256_set1_ps(finish.step),
          _mm256_set1_ps(static_cast<float>((1 << bits) - 1)),
          _mm256_set1_ps(finish.low + finish.step / 2.0f)};
}

// NaN becomes 0: VMAXPS gives its second operand.
inline __m256i codes(const Quantizer& quantizer, __m256 x) {
  if (quantizer.one_bit) {
    const __m256 set = _mm256_cmp_ps(x, quantizer.threshold, _CMP_GE_OQ);
    return _mm256_srli_epi32(_mm256_castps_si256(set), 31);
  }
  const __m256 quotient = _mm256_div_ps(_mm256_sub_ps(x, quantizer.low), quantizer.step);
  __m256 level = _mm256_add_ps(quotient, _mm256_set1_ps(0.5f));
  level = _mm256_max_ps(level, _mm256_setzero_ps());
  level = _mm256_min_ps(level, quantizer.greatest);
  // Bounds are whole numbers: cutting the fraction off after them is floor before them.
  return _mm256_cvttps_epi32(level);
}

inline void store_codes(uint8_t* to, int count, __m256i first, __m256i last) {
  const __m256i pairs = _mm256_packs_epi32(first, last);
  const __m128i mixed = _mm_packus_epi16(_mm256_castsi256_si128(pairs),
                                         _mm256_extracti128_si256(pairs, 1));
  // Fours of the first vector, then of the last: 0, 4, 1, 5 of the halves' fours.
  const __m128i q = _mm_shuffle_epi32(mixed, 0xD8);
  if (count == kAtOnce) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), q);
  } else {
    memcpy(to, &q, static_cast<size_t>(count));
  }
}

template <Source kSource, bool kPrelu>
void finish_channels(const Finish& given, const Channels& channels, int64_t pixels, int64_t c) {
  const Finish finish = given;  // a copy, which what is written cannot change: bytes alias all
  const Bounds bounds = bounds_of(finish);
  const Quantizer quantizer = quantizer_of(finish);
  for (int64_t p = 0; p < pixels; ++p) {
    const int64_t at = p * finish.pitch + c;
    __m256 x[kVectors];
    BITPRESS_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      if constexpr (kSource == Source::kBases) {
        x[i] = sum_bases(finish, channels, p, c, i);
      } else {
        const int64_t from = p * finish.sums_pitch + c;
        x[i] = kSource == Source::kIntegers
                   ? load_sums(finish, from + 8 * i, p, channels.offset[i])
                   : load_present(channels, static_cast<const float*>(finish.sums) + from, i);
      }
      x[i] = _mm256_add_ps(_mm256_mul_ps(channels.gain[i], x[i]), channels.shift[i]);
    }
    if (finish.residual) {
      BITPRESS_UNROLL
      for (int i = 0; i < kVectors; ++i) {
        x[i] = _mm256_add_ps(x[i], load_present(channels, finish.residual + at, i));
      }
    }
    BITPRESS_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      if constexpr (kPrelu) {
        const __m256 kept = _mm256_cmp_ps(x[i], _mm256_setzero_ps(), _CMP_GE_OQ);
        x[i] = _mm256_blendv_ps(_mm256_mul_ps(channels.slope[i], x[i]), x[i], kept);
      } else {
        x[i] = _mm256_min_ps(bounds.greatest, _mm256_max_ps(bounds.least, x[i]));
      }
    }
    if (finish.out_f32) {
      BITPRESS_UNROLL
      for (int i = 0; i < kVectors; ++i) {
        float* to = finish.out_f32 + at + 8 * i;
        if (channels.count == kAtOnce) {
          _mm256_storeu_ps(to, x[i]);
        } else {
          _mm256_maskstore_ps(to, channels.present[i], x[i]);
        }
      }
    }
    if (finish.out_u8) {
      store_codes(finish.out_u8 + at, channels.count, codes(quantizer, x[0]),
                  codes(quantizer, x[1]));
    }
  }
}

using FinishChannels = void (*)(const Finish&, const Channels&, int64_t, int64_t);

template <bool kPrelu>
FinishChannels choose(const Finish& finish) {
  if (finish.bases != 1 || finish.base_scale) return finish_channels<Source::kBases, kPrelu>;
  return finish.integer ? finish_channels<Source::kIntegers, kPrelu>
                        : finish_channels<Source::kNumbers, kPrelu>;
}

}  // namespace

void avx2_finish(const Finish& finish, int64_t pixels, int64_t channels) {
  const FinishChannels chosen =
      finish.activation == BP_PRELU ? choose<true>(finish) : choose<false>(finish);
  for (int64_t c = 0; c < channels; c += kAtOnce) {
    const int count = channels - c < kAtOnce ? static_cast<int>(channels - c) : kAtOnce;
    chosen(finish, channels_from(finish, c, count), pixels, c);
  }
}

}  // namespace bitpress
