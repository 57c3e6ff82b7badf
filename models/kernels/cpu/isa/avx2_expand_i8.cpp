// Products of bits with codes, the bits as bytes +1 and -1. VPMADDUBSW multiplies them with codes
// and adds neighbours: 510 at most, of which 64 can be added up in 16 bits.
#include <string.h>

#include "avx2_kernels.h"
#include "avx2_registers.h"

namespace bitpress {
namespace {

constexpr int kGroupChannels = 4;
constexpr int kLanes = 8;
constexpr int kVectors = 4;

void prepare(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out, int32_t*) {
  const int64_t padded = (channels + kGroupChannels - 1) / kGroupChannels * kGroupChannels;
  uint8_t* to = static_cast<uint8_t*>(out);
  for (int64_t p = 0; p < pixels; ++p) {
    memcpy(to, static_cast<const uint8_t*>(in) + p * pitch, static_cast<size_t>(channels));
    memset(to + channels, 0, static_cast<size_t>(padded - channels));
    to += padded;
  }
}

// The four bits of each of eight filters to the four bytes of a 32-bit lane.
void expand(const void* weights, int vectors, int64_t groups, void* panel) {
  const uint8_t* from = static_cast<const uint8_t*>(weights);
  __m256i* to = static_cast<__m256i*>(panel);
  const __m256i places = _mm256_setr_epi32(0, 0, 0x01010101, 0x01010101, 0x02020202, 0x02020202,
                                           0x03030303, 0x03030303);
  const __m256i bits = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  for (int64_t i = 0; i < groups * vectors; ++i) {
    int32_t word;
    memcpy(&word, from + i * 4, sizeof word);
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(word), places);
    const __m256i unset = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bits), _mm256_setzero_si256());
    _mm256_storeu_si256(to + i, _mm256_or_si256(unset, _mm256_set1_epi8(1)));
  }
}

struct Block {
  using Sum = int32_t;
  static constexpr int kLanes = bitpress::kLanes;
  static constexpr int kVectorBytes = 32;
  static constexpr int kChunk = 64;  // 64 * 510 is less than 2^15
  static constexpr int kMostVectors = kVectors;
  static constexpr int most_vectors(int) { return kMostVectors; }
  static constexpr int most_pixels(int vectors) { return vectors == 1 ? 6 : 12 / vectors; }

  template <int P, int F>
  static void run(const Tile& tile) {
    __m256i pairs[P][F];
    BITPRESS_UNROLL
    for (int p = 0; p < P; ++p) {
      BITPRESS_UNROLL
      for (int f = 0; f < F; ++f) pairs[p][f] = _mm256_setzero_si256();
    }
    const uint8_t* weights = tile.weights;
    const int64_t pixel_bytes = tile.window->pixel_bytes;
    Runs runs(tile, kGroupChannels);
    const uint8_t* codes;
    while (const int64_t groups = runs.next(codes)) {
      for (int64_t g = 0; g < groups; ++g, codes += kGroupChannels, weights += tile.pitch) {
        __m256i w[F];
        BITPRESS_UNROLL
        for (int f = 0; f < F; ++f) {
          w[f] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights) + f);
        }
        BITPRESS_UNROLL
        for (int p = 0; p < P; ++p) {
          int32_t four;
          memcpy(&four, codes + p * pixel_bytes, sizeof four);
          const __m256i x = _mm256_set1_epi32(four);
          BITPRESS_UNROLL
          for (int f = 0; f < F; ++f) {
            pairs[p][f] = _mm256_add_epi16(pairs[p][f], _mm256_maddubs_epi16(x, w[f]));
          }
        }
      }
    }
    BITPRESS_UNROLL
    for (int p = 0; p < P; ++p) {
      BITPRESS_UNROLL
      for (int f = 0; f < F; ++f) {
        __m256i* to = reinterpret_cast<__m256i*>(static_cast<int32_t*>(tile.sums) +
                                                 p * tile.sums_pitch + f * kLanes);
        __m256i sum = _mm256_madd_epi16(pairs[p][f], _mm256_set1_epi16(1));
        if (tile.accumulate) sum = _mm256_add_epi32(sum, _mm256_loadu_si256(to));
        _mm256_storeu_si256(to, sum);
      }
    }
  }
};

}  // namespace

constexpr ProductKernel kAvx2ExpandI8 = {
    "expand_i8",
    BP_U8,
    true,
    kGroupChannels,
    kGroupChannels,
    1,
    4,
    kLanes,
    kVectors,
    false,
    prepare,
    expand,
    4,
    multiply_in_tiles<Block>,
    false,
};

}  // namespace bitpress
