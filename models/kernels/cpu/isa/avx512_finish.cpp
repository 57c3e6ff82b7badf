// What follows a product (docs/FORMAT.md, 4.4): 16 channels of a few pixels at a time, so that what
// belongs to the channels stays in registers. No operation is fused with another.
#include <math.h>

#include "avx512_intrinsics.h"
#include "avx512_kernels.h"
#include "avx512_quantize.h"

namespace bitpress {
namespace {

constexpr int kLanes = 16;
constexpr int kPixels = 8;

// What a tile asks for is either known when compiled, for what is most frequent: one basis with no
// scale of its own, and no activation but ReLU,
enum class Sums { kFloat, kOfOnes, kOfSigns };
enum class Codes { kNone, kFromZero, kFromLow };  // kFromZero: low is 0

template <Sums kSums, bool kResidual, bool kF32, Codes kCodes>
struct Frequent {
  static constexpr bool integer(const Finish&) { return kSums != Sums::kFloat; }
  static constexpr bool doubled(const Finish&) { return kSums == Sums::kOfOnes; }
  static constexpr bool window_sums(const Finish&) { return kSums == Sums::kOfOnes; }
  static constexpr bool weighted(const Finish&) { return false; }
  static constexpr int64_t bases(const Finish&) { return 1; }
  static constexpr bool residual(const Finish&) { return kResidual; }
  // Codes alone are the same without ReLU where they are 0 for all numbers below 0.
  static constexpr bool clamped_below(const Finish&) { return kF32 || kCodes != Codes::kFromZero; }
  static constexpr bool clamped_above(const Finish&) { return false; }
  static constexpr bool prelu(const Finish&) { return false; }
  static constexpr bool f32(const Finish&) { return kF32; }
  static constexpr Codes codes(const Finish&) { return kCodes; }

  static bool fits(const Finish& f) {
    const bool sums = f.integer ? f.doubled == doubled(f) &&
                                      (f.window_sums != nullptr) == window_sums(f) && integer(f)
                                : !integer(f);
    const bool codes = f.out_u8 == nullptr ? kCodes == Codes::kNone
                       : f.low == 0.0f     ? kCodes != Codes::kNone
                                           : kCodes == Codes::kFromLow;
    return sums && codes && f.base_scale == nullptr && f.bases == 1 &&
           (f.residual != nullptr) == kResidual && (f.out_f32 != nullptr) == kF32 &&
           (f.activation == BP_IDENTITY || f.activation == BP_RELU);
  }
};

// or looked up.
struct Any {
  static bool integer(const Finish& f) { return f.integer; }
  static bool doubled(const Finish& f) { return f.doubled != 0; }
  static bool window_sums(const Finish& f) { return f.window_sums != nullptr; }
  static bool weighted(const Finish& f) { return f.base_scale != nullptr; }
  static int64_t bases(const Finish& f) { return f.bases; }
  static bool residual(const Finish& f) { return f.residual != nullptr; }
  static bool clamped_below(const Finish&) { return true; }
  static bool clamped_above(const Finish& f) { return f.activation == BP_HARDTANH; }
  static bool prelu(const Finish& f) { return f.activation == BP_PRELU; }
  static bool f32(const Finish& f) { return f.out_f32 != nullptr; }
  static Codes codes(const Finish& f) {
    return f.out_u8 != nullptr ? Codes::kFromLow : Codes::kNone;
  }
};

// What belongs to 16 channels from `first` on; those of `mask` are there. What is missing is put
// so that it changes nothing: x * 1, x + -0 and max(-infinity, x) are x, also for zeros and NaN.
struct Channels {
  __mmask16 mask;
  int64_t first;
  __m512 gain, shift, slope;
  __m512 low, high;  // of the activation
  __m512i offset;    // of the first basis
};

inline __m512 load_or(float otherwise, const float* numbers, int64_t first, __mmask16 mask) {
  return numbers != nullptr ? _mm512_maskz_loadu_ps(mask, numbers + first)
                            : _mm512_set1_ps(otherwise);
}

inline __m512i load_offset(const Finish& finish, int64_t basis, int64_t first, __mmask16 mask) {
  if (finish.offset == nullptr) return _mm512_setzero_si512();
  return _mm512_maskz_loadu_epi32(mask, finish.offset + basis * finish.offset_pitch + first);
}

inline Channels channels_from(const Finish& finish, int64_t first, int64_t count) {
  Channels c;
  const int64_t left = count - first;
  c.mask = static_cast<__mmask16>(left < kLanes ? (1 << left) - 1 : 0xFFFF);
  c.first = first;
  c.gain = load_or(1.0f, finish.gain, first, c.mask);
  c.shift = load_or(-0.0f, finish.shift, first, c.mask);
  c.slope = load_or(1.0f, finish.slope, first, c.mask);
  c.low = _mm512_set1_ps(finish.activation == BP_RELU       ? 0.0f
                         : finish.activation == BP_HARDTANH ? finish.activation_low
                                                            : -INFINITY);
  c.high = _mm512_set1_ps(finish.activation_high);
  c.offset = load_offset(finish, 0, first, c.mask);
  return c;
}

// z of one basis, in binary32.
template <class Asked, int P>
inline void load_sums(const Finish& finish, int64_t basis, int64_t pixel, const Channels& channels,
                      __m512i offset, __m512 (&z)[P]) {
  const int64_t at = basis * finish.basis_pitch + pixel * finish.sums_pitch + channels.first;
  for (int p = 0; p < P; ++p) {
    const int64_t place = at + p * finish.sums_pitch;
    if (Asked::integer(finish)) {
      __m512i sum = _mm512_loadu_si512(static_cast<const int32_t*>(finish.sums) + place);
      if (Asked::doubled(finish)) sum = _mm512_add_epi32(sum, sum);
      if (Asked::window_sums(finish))
        sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(finish.window_sums[pixel + p]));
      z[p] = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, offset));
    } else {
      z[p] = _mm512_loadu_ps(static_cast<const float*>(finish.sums) + place);
    }
  }
}

template <class Asked, int P>
inline void weigh(const Finish& finish, int64_t basis, const Channels& channels,
                  __m512 (&z)[P]) {
  if (!Asked::weighted(finish)) return;
  const __m512 scale = _mm512_maskz_loadu_ps(
      channels.mask, finish.base_scale + basis * finish.base_scale_pitch + channels.first);
  for (int p = 0; p < P; ++p) z[p] = _mm512_mul_ps(scale, z[p]);
}

template <class Asked, int P>
inline void sum_bases(const Finish& finish, int64_t pixel, const Channels& channels,
                      __m512 (&x)[P]) {
  load_sums<Asked, P>(finish, 0, pixel, channels, channels.offset, x);
  weigh<Asked, P>(finish, 0, channels, x);
  for (int64_t k = 1; k < Asked::bases(finish); ++k) {
    __m512 z[P];
    const __m512i offset = load_offset(finish, k, channels.first, channels.mask);
    load_sums<Asked, P>(finish, k, pixel, channels, offset, z);
    weigh<Asked, P>(finish, k, channels, z);
    for (int p = 0; p < P; ++p) x[p] = _mm512_add_ps(x[p], z[p]);
  }
}

// VMAXPS and VMINPS give their second operand where one is NaN: x stays NaN.
template <class Asked>
inline __m512 activated(const Finish& finish, const Channels& channels, __m512 x) {
  if (Asked::prelu(finish)) {
    const __mmask16 stays = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ);
    return _mm512_mask_mov_ps(_mm512_mul_ps(channels.slope, x), stays, x);
  }
  if (Asked::clamped_below(finish)) x = _mm512_max_ps(channels.low, x);
  return Asked::clamped_above(finish) ? _mm512_min_ps(channels.high, x) : x;
}

template <class Asked, int P>
inline void finish_pixels(const Finish& finish, const Quantizer& quantizer,
                          const Channels& channels, int64_t pixel) {
  const int64_t at = pixel * finish.pitch + channels.first;
  __m512 x[P];
  sum_bases<Asked, P>(finish, pixel, channels, x);
  for (int p = 0; p < P; ++p) {
    const int64_t place = at + p * finish.pitch;
    x[p] = _mm512_add_ps(_mm512_mul_ps(channels.gain, x[p]), channels.shift);
    if (Asked::residual(finish))
      x[p] = _mm512_add_ps(x[p], _mm512_maskz_loadu_ps(channels.mask, finish.residual + place));
    x[p] = activated<Asked>(finish, channels, x[p]);
    if (Asked::f32(finish)) _mm512_mask_storeu_ps(finish.out_f32 + place, channels.mask, x[p]);
  }
  if (Asked::codes(finish) != Codes::kNone) {
    __m128i codes[P];
    codes_of<P>(quantizer, Asked::codes(finish) == Codes::kFromZero, x, codes);
    for (int p = 0; p < P; ++p)
      _mm_mask_storeu_epi8(finish.out_u8 + at + p * finish.pitch, channels.mask, codes[p]);
  }
}

template <class Asked>
void finish_tile(const Finish& finish, int64_t pixels, int64_t channels) {
  // A copy, which nothing that is stored to can change.
  const Finish local = finish;
  const Quantizer quantizer = quantizer_of(local);
  for (int64_t c = 0; c < channels; c += kLanes) {
    const Channels block = channels_from(local, c, channels);
    int64_t p = 0;
    for (; p + kPixels <= pixels; p += kPixels)
      finish_pixels<Asked, kPixels>(local, quantizer, block, p);
    if (p + 4 <= pixels) {
      finish_pixels<Asked, 4>(local, quantizer, block, p);
      p += 4;
    }
    if (p + 2 <= pixels) {
      finish_pixels<Asked, 2>(local, quantizer, block, p);
      p += 2;
    }
    if (p < pixels) finish_pixels<Asked, 1>(local, quantizer, block, p);
  }
}

template <class... Asked>
inline void finish_as_first_that_fits(const Finish& finish, int64_t pixels, int64_t channels) {
  const bool done =
      ((Asked::fits(finish) && (finish_tile<Asked>(finish, pixels, channels), true)) || ...);
  if (!done) finish_tile<Any>(finish, pixels, channels);
}

}  // namespace

void avx512_finish(const Finish& finish, int64_t pixels, int64_t channels) {
  finish_as_first_that_fits<
      Frequent<Sums::kOfOnes, false, false, Codes::kFromZero>,
      Frequent<Sums::kOfOnes, true, true, Codes::kFromZero>,
      Frequent<Sums::kOfOnes, true, false, Codes::kFromZero>,
      Frequent<Sums::kOfOnes, false, true, Codes::kNone>,
      Frequent<Sums::kOfOnes, true, true, Codes::kNone>,
      Frequent<Sums::kOfOnes, false, false, Codes::kFromLow>,
      Frequent<Sums::kOfSigns, false, false, Codes::kFromZero>,
      Frequent<Sums::kOfSigns, true, true, Codes::kFromZero>,
      Frequent<Sums::kOfSigns, false, true, Codes::kNone>,
      Frequent<Sums::kOfSigns, true, true, Codes::kNone>,
      Frequent<Sums::kFloat, false, true, Codes::kNone>,
      Frequent<Sums::kFloat, true, true, Codes::kNone>,
      Frequent<Sums::kFloat, false, false, Codes::kFromLow>>(finish, pixels, channels);
}

}  // namespace bitpress
