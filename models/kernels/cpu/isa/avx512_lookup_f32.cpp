// Bits times float32 by look-up: four weights are an index into the 16 sums that four activations,
// each added or subtracted, can have, and VPERMPS looks up 16 filters at once.
#include <string.h>

#include "avx512_intrinsics.h"
#include "avx512_kernels.h"
#include "avx512_pieces.h"

namespace bitpress {
namespace {

constexpr int kGroupChannels = 4;
constexpr int kGroupBytes = 64;
constexpr int kWordGroups = 8;
constexpr int kLanes = 16;

// +1 in the lanes whose number has the bit, -1 elsewhere.
inline __m512 signs(int bit) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __mmask16 set = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(1 << bit));
  return _mm512_mask_blend_ps(set, _mm512_set1_ps(-1.0f), _mm512_set1_ps(1.0f));
}

struct Signs {
  __m512 of[kGroupChannels];
};

// Products by +-1 are exact, so that fused or not makes no difference.
inline __m512 table_of(const float* x, const Signs& signs) {
  __m512 t = _mm512_mul_ps(signs.of[0], _mm512_set1_ps(x[0]));
  t = _mm512_fmadd_ps(signs.of[1], _mm512_set1_ps(x[1]), t);
  t = _mm512_fmadd_ps(signs.of[2], _mm512_set1_ps(x[2]), t);
  return _mm512_fmadd_ps(signs.of[3], _mm512_set1_ps(x[3]), t);
}

void prepare(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out,
             int32_t*) {
  const Signs sign{{signs(0), signs(1), signs(2), signs(3)}};
  const int64_t whole = channels / kGroupChannels;
  const int64_t rest = channels - whole * kGroupChannels;
  float* table = static_cast<float*>(out);
  for (int64_t p = 0; p < pixels; ++p) {
    const float* x = static_cast<const float*>(in) + p * pitch;
    for (int64_t g = 0; g < whole; ++g, x += kGroupChannels, table += 16)
      _mm512_storeu_ps(table, table_of(x, sign));
    if (rest != 0) {
      float last[kGroupChannels] = {};
      for (int64_t c = 0; c < rest; ++c) last[c] = x[c];
      _mm512_storeu_ps(table, table_of(last, sign));
      table += 16;
    }
  }
  memset(table, 0, (kWordGroups - 1) * kGroupBytes);
}

struct Block {
  using Sum = float;

  static constexpr int most_pixels(int vectors) {
    return vectors == 4 ? 6 : vectors == 3 ? 8 : vectors == 2 ? 12 : 16;
  }

  // One group: its look-ups, and the next group's bits moved to where they are looked up.
  template <int P, int F>
  static inline void look_up(__m512 (&sum)[P][F], __m512i (&index)[F], const uint8_t* table,
                             int64_t pixel_bytes) {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      __m512 entries = _mm512_loadu_ps(table + p * pixel_bytes);
      if (F > 1) pin(entries);
#pragma GCC unroll 4
      for (int f = 0; f < F; ++f) {
        const __m512 found = _mm512_permutexvar_ps(index[f], entries);
        sum[p][f] =
            (p + f) % 2 == 0 ? _mm512_add_ps(sum[p][f], found) : added(found, sum[p][f]);
        pin(sum[p][f]);
      }
    }
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f) index[f] = _mm512_srli_epi32(index[f], kGroupChannels);
  }

  template <int P, int F>
  static void run(const Piece& piece) {
    const Window& window = *piece.window;
    const int64_t pixel_bytes = window.pixel_bytes;
    const uint32_t* words = static_cast<const uint32_t*>(piece.weights);
    float* sums = static_cast<float*>(piece.sums);

    __m512 sum[P][F];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int f = 0; f < F; ++f) {
        sum[p][f] = piece.accumulate ? _mm512_loadu_ps(sums + p * piece.sums_pitch + f * kLanes)
                                     : _mm512_setzero_ps();
      }
    }
    for (int64_t s = 0; s < window.segments; ++s) {
      const uint8_t* table = window.rows[s] + piece.first_byte;
      int64_t left = window.groups;
      __m512i index[F];
      for (; left >= kWordGroups; left -= kWordGroups) {
#pragma GCC unroll 4
        for (int f = 0; f < F; ++f) index[f] = _mm512_loadu_si512(words + f * kLanes);
#pragma GCC unroll 8
        for (int g = 0; g < kWordGroups; ++g)
          look_up<P, F>(sum, index, table + g * kGroupBytes, pixel_bytes);
        words += F * kLanes;
        table += kWordGroups * kGroupBytes;
      }
      if (left > 0) {
#pragma GCC unroll 4
        for (int f = 0; f < F; ++f) index[f] = _mm512_loadu_si512(words + f * kLanes);
        for (; left > 0; --left, table += kGroupBytes)
          look_up<P, F>(sum, index, table, pixel_bytes);
        words += F * kLanes;
      }
    }
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int f = 0; f < F; ++f)
        _mm512_storeu_ps(sums + p * piece.sums_pitch + f * kLanes, sum[p][f]);
    }
  }
};

}  // namespace

const ProductKernel kAvx512LookupF32 = {
    "lookup_f32", BP_F32,  true, kGroupChannels, kGroupBytes, kWordGroups, 32, kLanes, 4, false,
    prepare,      nullptr, 0,    multiply_in_pieces<Block>};

}  // namespace bitpress
