// Bits times 8-bit codes by multiplication: weights are expanded to bytes of +1 and -1, and
// VPDPBUSD multiplies and adds four channels of 16 filters.
#include <string.h>

#include "avx512_intrinsics.h"
#include "avx512_kernels.h"
#include "tiles.h"

namespace bitpress {
namespace {

constexpr int kGroupChannels = 4;
constexpr int kGroupBytes = 4;
constexpr int kLanes = 16;

void prepare(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out,
             int32_t*) {
  const int64_t bytes = (channels + kGroupChannels - 1) / kGroupChannels * kGroupBytes;
  for (int64_t p = 0; p < pixels; ++p) {
    const uint8_t* x = static_cast<const uint8_t*>(in) + p * pitch;
    uint8_t* to = static_cast<uint8_t*>(out) + p * bytes;
    memcpy(to, x, channels);
    memset(to + channels, 0, bytes - channels);
  }
}

// The nibbles of 16 filters, 64 bits, are the mask of a register's bytes.
void expand(const void* weights, int vectors, int64_t groups, void* panel) {
  const uint8_t* words = static_cast<const uint8_t*>(weights);
  uint8_t* out = static_cast<uint8_t*>(panel);
  const __m512i minus = _mm512_set1_epi8(-1), plus = _mm512_set1_epi8(1);
  for (int64_t i = 0; i < groups * vectors; ++i) {
    uint64_t bits;
    memcpy(&bits, words + 8 * i, 8);
    _mm512_storeu_si512(out + 64 * i, _mm512_mask_blend_epi8(_cvtu64_mask64(bits), minus, plus));
  }
}

struct Block {
  using Sum = int32_t;
  static constexpr int kLanes = bitpress::kLanes;
  static constexpr int kVectorBytes = 64;
  static constexpr int64_t kChunk = kWhole;
  static constexpr int kMostVectors = 4;
  static constexpr int most_vectors(int) { return kMostVectors; }
  static constexpr int most_pixels(int vectors) {
    return vectors == 4 ? 6 : vectors == 3 ? 8 : vectors == 2 ? 8 : 16;
  }

  template <int P, int F>
  static void run(const Tile& tile) {
    const int64_t pixel_bytes = tile.window->pixel_bytes;
    const uint8_t* weights = tile.weights;
    int32_t* sums = static_cast<int32_t*>(tile.sums);
    __m512i sum[P][F];
    BITPRESS_UNROLL
    for (int p = 0; p < P; ++p) {
      BITPRESS_UNROLL
      for (int f = 0; f < F; ++f) {
        sum[p][f] = tile.accumulate ? _mm512_loadu_si512(sums + p * tile.sums_pitch + f * kLanes)
                                    : _mm512_setzero_si512();
      }
    }
    Runs runs(tile, kGroupBytes);
    const uint8_t* row;
    while (int64_t left = runs.next(row)) {
      for (; left > 0; --left, row += kGroupBytes, weights += tile.pitch) {
        __m512i weight[F];
        BITPRESS_UNROLL
        for (int f = 0; f < F; ++f) weight[f] = _mm512_loadu_si512(weights + f * kVectorBytes);
        BITPRESS_UNROLL
        for (int p = 0; p < P; ++p) {
          int32_t four;
          memcpy(&four, row + p * pixel_bytes, sizeof four);
          const __m512i x = _mm512_set1_epi32(four);
          BITPRESS_UNROLL
          for (int f = 0; f < F; ++f) sum[p][f] = _mm512_dpbusd_epi32(sum[p][f], x, weight[f]);
        }
      }
    }
    BITPRESS_UNROLL
    for (int p = 0; p < P; ++p) {
      BITPRESS_UNROLL
      for (int f = 0; f < F; ++f)
        _mm512_storeu_si512(sums + p * tile.sums_pitch + f * kLanes, sum[p][f]);
    }
  }
};

}  // namespace

constexpr ProductKernel kAvx512ExpandI8 = {
    "expand_i8", BP_U8,  true, kGroupChannels, kGroupBytes, 1, 4, kLanes, 4, false,
    prepare,     expand, 4,    multiply_in_tiles<Block>,
    false};

}  // namespace bitpress
