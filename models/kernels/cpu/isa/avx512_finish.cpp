// What follows a product (docs/FORMAT.md, 4.4): 64 channels of a pixel or two at a time, so that
// what belongs to the channels stays in registers. No operation is fused with another.
#include <math.h>

#include "avx512_intrinsics.h"
#include "avx512_kernels.h"
#include "avx512_quantize.h"

namespace bitpress {
namespace {

constexpr int kLanes = 16;

// What a tile asks for is either known when compiled, for what is most frequent: one basis with no
// scale of its own, and no activation but ReLU,
enum class Source { kFloat, kOfOnes, kOfSigns };
enum class Codes { kNone, kFromZero, kFromLow };  // kFromZero: low is 0

template <Source kSource, bool kResidual, bool kF32, Codes kCodes>
struct Frequent {
  static constexpr bool integer(const Finish&) { return kSource != Source::kFloat; }
  static constexpr bool doubled(const Finish&) { return kSource == Source::kOfOnes; }
  static constexpr bool window_sums(const Finish&) { return kSource == Source::kOfOnes; }
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

// or looked up; kSeveral: also with several bases or scales of theirs, which cost all others time.
template <bool kSeveral>
struct Any {
  static bool integer(const Finish& f) { return f.integer; }
  static bool doubled(const Finish& f) { return f.doubled != 0; }
  static bool window_sums(const Finish& f) { return f.window_sums != nullptr; }
  static bool weighted(const Finish& f) { return kSeveral && f.base_scale != nullptr; }
  static int64_t bases(const Finish& f) { return kSeveral ? f.bases : 1; }
  static bool residual(const Finish& f) { return f.residual != nullptr; }
  static bool clamped_below(const Finish&) { return true; }
  static bool clamped_above(const Finish& f) { return f.activation == BP_HARDTANH; }
  static bool prelu(const Finish& f) { return f.activation == BP_PRELU; }
  static bool f32(const Finish& f) { return f.out_f32 != nullptr; }
  static Codes codes(const Finish& f) {
    return f.out_u8 != nullptr ? Codes::kFromLow : Codes::kNone;
  }

  static bool fits(const Finish& f) {
    return kSeveral || (f.bases == 1 && f.base_scale == nullptr);
  }
};

// What belongs to V * 16 channels from `first` on. All of them are there where V > 1, else those of
// `mask`. What is missing is put so that it changes nothing: x * 1, x + -0 and max(-infinity, x)
// are x, also for zeros and NaN.
template <int V>
struct Channels {
  __mmask16 mask;
  int64_t first;
  __m512 gain[V], shift[V];
  __m512i offset[V];  // of the first basis
  __m512 low, high;   // of the activation

  Channels(const Finish& finish, int64_t first_channel, int64_t count) {
    const int64_t left = count - first_channel;
    mask = static_cast<__mmask16>(left < kLanes ? (1 << left) - 1 : 0xFFFF);
    first = first_channel;
    low = _mm512_set1_ps(finish.activation == BP_RELU       ? 0.0f
                         : finish.activation == BP_HARDTANH ? finish.activation_low
                                                            : -INFINITY);
    high = _mm512_set1_ps(finish.activation_high);
    for (int v = 0; v < V; ++v) {
      gain[v] = finish.gain != nullptr ? load(finish.gain + first, v) : _mm512_set1_ps(1.0f);
      shift[v] = finish.shift != nullptr ? load(finish.shift + first, v) : _mm512_set1_ps(-0.0f);
      offset[v] = offset_of(finish, 0, v);
    }
  }

  __m512 load(const float* x, int v) const {
    x += v * kLanes;
    return V > 1 ? _mm512_loadu_ps(x) : _mm512_maskz_loadu_ps(mask, x);
  }

  void store(float* to, int v, __m512 x) const {
    to += v * kLanes;
    V > 1 ? _mm512_storeu_ps(to, x) : _mm512_mask_storeu_ps(to, mask, x);
  }

  void store(uint8_t* to, int v, __m128i x) const {
    to += v * kLanes;
    V > 1 ? _mm_storeu_si128(reinterpret_cast<__m128i*>(to), x)
          : _mm_mask_storeu_epi8(to, mask, x);
  }

  __m512i offset_of(const Finish& finish, int64_t basis, int v) const {
    if (finish.offset == nullptr) return _mm512_setzero_si512();
    const int32_t* offsets = finish.offset + basis * finish.offset_pitch + first + v * kLanes;
    return V > 1 ? _mm512_loadu_si512(offsets) : _mm512_maskz_loadu_epi32(mask, offsets);
  }
};

// P pixels of V vectors of channels.
template <class Asked, int P, int V>
struct Block {
  const Finish& finish;
  const Channels<V>& channels;
  int64_t pixel;
  __m512 x[P][V];

  // z of one basis, in binary32.
  inline __m512 sum(int64_t basis, int p, int v, __m512i offset) const {
    const int64_t at = basis * finish.basis_pitch + (pixel + p) * finish.sums_pitch +
                       channels.first + v * kLanes;
    if (!Asked::integer(finish))
      return channels.load(static_cast<const float*>(finish.sums) + at, 0);
    __m512i z = _mm512_loadu_si512(static_cast<const int32_t*>(finish.sums) + at);
    if (Asked::doubled(finish)) z = _mm512_add_epi32(z, z);
    if (Asked::window_sums(finish))
      z = _mm512_sub_epi32(z, _mm512_set1_epi32(finish.window_sums[pixel + p]));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(z, offset));
  }

  inline void sum_bases() {
    for (int p = 0; p < P; ++p) {
      for (int v = 0; v < V; ++v) x[p][v] = sum(0, p, v, channels.offset[v]);
    }
    for (int64_t k = 0; k < Asked::bases(finish); ++k) {
      for (int v = 0; v < V; ++v) {
        const __m512i offset = channels.offset_of(finish, k, v);
        __m512 scale = _mm512_setzero_ps();
        if (Asked::weighted(finish)) {
          scale = channels.load(
              finish.base_scale + k * finish.base_scale_pitch + channels.first, v);
        }
        for (int p = 0; p < P; ++p) {
          __m512 z = k == 0 ? x[p][v] : sum(k, p, v, offset);
          if (Asked::weighted(finish)) z = _mm512_mul_ps(scale, z);
          x[p][v] = k == 0 ? z : _mm512_add_ps(x[p][v], z);
        }
      }
    }
  }

  // VMAXPS and VMINPS give their second operand where one is NaN: x stays NaN.
  inline __m512 activated(__m512 number, int v) const {
    if (Asked::prelu(finish)) {
      const __mmask16 stays = _mm512_cmp_ps_mask(number, _mm512_setzero_ps(), _CMP_GE_OQ);
      const __m512 slope = channels.load(finish.slope + channels.first, v);
      return _mm512_mask_mov_ps(_mm512_mul_ps(slope, number), stays, number);
    }
    if (Asked::clamped_below(finish)) number = _mm512_max_ps(channels.low, number);
    return Asked::clamped_above(finish) ? _mm512_min_ps(channels.high, number) : number;
  }

  inline void run(const Quantizer& quantizer) {
    const int64_t at = pixel * finish.pitch + channels.first;
    sum_bases();
    for (int p = 0; p < P; ++p) {
      const int64_t place = at + p * finish.pitch;
      for (int v = 0; v < V; ++v) {
        __m512& number = x[p][v];
        number = _mm512_add_ps(_mm512_mul_ps(channels.gain[v], number), channels.shift[v]);
        if (Asked::residual(finish))
          number = _mm512_add_ps(number, channels.load(finish.residual + place, v));
        number = activated(number, v);
        if (Asked::f32(finish)) channels.store(finish.out_f32 + place, v, number);
      }
    }
    if (Asked::codes(finish) == Codes::kNone) return;
    __m128i codes[P * V];
    codes_of<P * V>(quantizer, Asked::codes(finish) == Codes::kFromZero, &x[0][0], codes);
    for (int p = 0; p < P; ++p) {
      for (int v = 0; v < V; ++v)
        channels.store(finish.out_u8 + at + p * finish.pitch, v, codes[p * V + v]);
    }
  }
};

template <class Asked, int P, int V>
inline void finish_channels(const Finish& finish, const Quantizer& quantizer, int64_t first,
                            int64_t pixels, int64_t count) {
  const Channels<V> channels(finish, first, count);
  int64_t p = 0;
  for (; p + P <= pixels; p += P) Block<Asked, P, V>{finish, channels, p, {}}.run(quantizer);
  for (; p < pixels; ++p) Block<Asked, 1, V>{finish, channels, p, {}}.run(quantizer);
}

template <class Asked>
void finish_tile(const Finish& __restrict finish, int64_t pixels, int64_t channels) {
  const Quantizer quantizer(finish);
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes)
    finish_channels<Asked, 2, 4>(finish, quantizer, c, pixels, channels);
  for (; c < channels; c += kLanes)
    finish_channels<Asked, 4, 1>(finish, quantizer, c, pixels, channels);
}

template <class... Asked>
inline void finish_as_first_that_fits(const Finish& finish, int64_t pixels, int64_t channels) {
  static_cast<void>(
      ((Asked::fits(finish) && (finish_tile<Asked>(finish, pixels, channels), true)) || ...));
}

}  // namespace

void avx512_finish(const Finish& finish, int64_t pixels, int64_t channels) {
  finish_as_first_that_fits<
      Frequent<Source::kOfOnes, false, false, Codes::kFromZero>,
      Frequent<Source::kOfOnes, true, true, Codes::kFromZero>,
      Frequent<Source::kOfOnes, true, false, Codes::kFromZero>,
      Frequent<Source::kOfOnes, false, true, Codes::kFromZero>,
      Frequent<Source::kOfOnes, false, true, Codes::kNone>,
      Frequent<Source::kOfOnes, true, true, Codes::kNone>,
      Frequent<Source::kOfOnes, false, false, Codes::kFromLow>,
      Frequent<Source::kOfSigns, false, false, Codes::kFromZero>,
      Frequent<Source::kOfSigns, true, true, Codes::kFromZero>,
      Frequent<Source::kOfSigns, false, true, Codes::kNone>,
      Frequent<Source::kFloat, false, true, Codes::kNone>,
      Frequent<Source::kFloat, true, true, Codes::kNone>,
      Frequent<Source::kFloat, false, false, Codes::kFromLow>,
      Frequent<Source::kFloat, false, true, Codes::kFromLow>, Any<false>, Any<true>>(
      finish, pixels, channels);
}

}  // namespace bitpress
