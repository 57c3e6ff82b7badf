// Products of bits with float32 by table look-up. VPERMPS looks up eight numbers at once in a table
// of eight: the sums of four numbers of which the last one counts as positive. Where it counts as
// negative, the sum is the one of opposite signs, times -1, and an FMA multiplies and adds at once.
#include <string.h>

#include "avx2_kernels.h"
#include "avx2_registers.h"

namespace bitpress {
namespace {

constexpr int kGroupChannels = 4;
constexpr int kGroupBytes = 32;
constexpr int kLanes = 8;
constexpr int kVectors = 4;

// Entry i is x[3] and, for c below 3, -x[c] where bit c of i is set, x[c] elsewhere.
inline void make_table(const float* x, float* out) {
  const __m256 minus = _mm256_set1_ps(-0.0f);
  const __m256 zero = _mm256_setzero_ps();
  const __m256 sign0 = _mm256_blend_ps(zero, minus, 0xAA);
  const __m256 sign1 = _mm256_blend_ps(zero, minus, 0xCC);
  const __m256 sign2 = _mm256_blend_ps(zero, minus, 0xF0);
  const __m256 a = _mm256_xor_ps(_mm256_broadcast_ss(x), sign0);
  const __m256 b = _mm256_xor_ps(_mm256_broadcast_ss(x + 1), sign1);
  const __m256 c = _mm256_xor_ps(_mm256_broadcast_ss(x + 2), sign2);
  const __m256 d = _mm256_broadcast_ss(x + 3);
  _mm256_storeu_ps(out, _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d)));
}

void prepare(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out, int32_t*) {
  float* to = static_cast<float*>(out);
  for (int64_t p = 0; p < pixels; ++p) {
    const float* from = static_cast<const float*>(in) + p * pitch;
    int64_t c = 0;
    for (; c + kGroupChannels <= channels; c += kGroupChannels, to += 8) make_table(from + c, to);
    if (c < channels) {
      float rest[kGroupChannels] = {};
      memcpy(rest, from + c, static_cast<size_t>(channels - c) * sizeof(float));
      make_table(rest, to);
      to += 8;
    }
  }
}

// To a number whose sign and exponent are those of +1 or -1, with the index in the lowest bits and
// anything between. VPERMPS and the loop below take no notice of the rest.
void expand(const void* weights, int vectors, int64_t groups, void* panel) {
  const uint8_t* from = static_cast<const uint8_t*>(weights);
  __m256i* to = static_cast<__m256i*>(panel);
  const __m256i places = _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0);
  const __m256i minus_one = _mm256_castps_si256(_mm256_set1_ps(-1.0f));
  const __m256i not_exponent = _mm256_set1_epi32(static_cast<int32_t>(0x807FFFFF));
  for (int64_t i = 0; i < groups * vectors; ++i) {
    int32_t word;
    memcpy(&word, from + i * 4, sizeof word);
    const __m256i bits = _mm256_sllv_epi32(_mm256_set1_epi32(word), places);
    // Where the last number counts as negative, the sum wanted is entry `bits` times -1. Where its
    // bit, and so every bit of `positive`, is set, it is the entry of all bits turned over.
    const __m256i positive = _mm256_srai_epi32(bits, 31);
    const __m256i index = _mm256_xor_si256(_mm256_srli_epi32(bits, 28), positive);
    _mm256_storeu_si256(to + i,
                        _mm256_xor_si256(_mm256_and_si256(index, not_exponent), minus_one));
  }
}

struct Block {
  using Sum = float;
  static constexpr int kLanes = bitpress::kLanes;
  static constexpr int kVectorBytes = 32;
  static constexpr int64_t kChunk = kFloatChunk;
  static constexpr int kMostVectors = kVectors;
  // With few pixels it takes more filters to have enough sums that do not wait for each other.
  static constexpr int most_vectors(int pixels) { return pixels <= 2 ? 4 : 2; }
  static constexpr int most_pixels(int vectors) { return vectors == 1 ? 6 : vectors == 2 ? 4 : 2; }

  template <int P, int F>
  static void run(const Tile& tile) {
    __m256 sums[P][F];
    BITPRESS_UNROLL
    for (int p = 0; p < P; ++p) {
      BITPRESS_UNROLL
      for (int f = 0; f < F; ++f) sums[p][f] = _mm256_setzero_ps();
    }
    const __m256i sign_and_exponent = _mm256_set1_epi32(static_cast<int32_t>(0xFF800000));
    const uint8_t* weights = tile.weights;
    const int64_t pixel_bytes = tile.window->pixel_bytes;
    Runs runs(tile, kGroupBytes);
    const uint8_t* tables;
    while (const int64_t groups = runs.next(tables)) {
      for (int64_t g = 0; g < groups; ++g, tables += kGroupBytes, weights += tile.pitch) {
        __m256 table[P];
        BITPRESS_UNROLL
        for (int p = 0; p < P; ++p) {
          table[p] = _mm256_loadu_ps(reinterpret_cast<const float*>(tables + p * pixel_bytes));
          keep(table[p]);
        }
        BITPRESS_UNROLL
        for (int f = 0; f < F; ++f) {
          __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights) + f);
          keep(index);
          const __m256 sign = _mm256_castsi256_ps(_mm256_and_si256(index, sign_and_exponent));
          BITPRESS_UNROLL
          for (int p = 0; p < P; ++p) {
            const __m256 found = _mm256_permutevar8x32_ps(table[p], index);
            sums[p][f] = _mm256_fmadd_ps(sign, found, sums[p][f]);
          }
        }
      }
    }
    BITPRESS_UNROLL
    for (int p = 0; p < P; ++p) {
      BITPRESS_UNROLL
      for (int f = 0; f < F; ++f) {
        float* to = static_cast<float*>(tile.sums) + p * tile.sums_pitch + f * kLanes;
        __m256 sum = sums[p][f];
        if (tile.accumulate) sum = _mm256_add_ps(_mm256_loadu_ps(to), sum);
        _mm256_storeu_ps(to, sum);
      }
    }
  }
};

}  // namespace

constexpr ProductKernel kAvx2LookupF32 = {
    "lookup_f32",
    BP_F32,
    true,
    kGroupChannels,
    kGroupBytes,
    1,
    4,
    kLanes,
    kVectors,
    false,
    prepare,
    expand,
    4,
    multiply_in_tiles<Block>,
    true,
};

}  // namespace bitpress
