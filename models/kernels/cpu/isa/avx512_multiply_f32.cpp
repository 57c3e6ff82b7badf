// Float32 weights times float32.
#include <string.h>

#include "avx512_intrinsics.h"
#include "avx512_kernels.h"
#include "tiles.h"

namespace bitpress {
namespace {

constexpr int kLanes = 16;

void prepare(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out,
             int32_t*) {
  for (int64_t p = 0; p < pixels; ++p)
    memcpy(static_cast<float*>(out) + p * channels, static_cast<const float*>(in) + p * pitch,
           channels * sizeof(float));
}

struct Block {
  using Sum = float;
  static constexpr int kLanes = bitpress::kLanes;
  static constexpr int kVectorBytes = 64;
  static constexpr int64_t kChunk = kFloatChunk;
  static constexpr int kMostVectors = 4;
  static constexpr int most_vectors(int) { return kMostVectors; }
  static constexpr int most_pixels(int vectors) {
    return vectors == 4 ? 6 : vectors == 3 ? 8 : vectors == 2 ? 8 : 16;
  }

  template <int P, int F>
  static void run(const Tile& tile) {
    const int64_t pixel_bytes = tile.window->pixel_bytes;
    const uint8_t* weights = tile.weights;
    __m512 sum[P][F];
    BITPRESS_UNROLL
    for (int p = 0; p < P; ++p) {
      BITPRESS_UNROLL
      for (int f = 0; f < F; ++f) sum[p][f] = _mm512_setzero_ps();
    }
    Runs runs(tile, sizeof(float));
    const uint8_t* row;
    while (int64_t left = runs.next(row)) {
      for (; left > 0; --left, row += sizeof(float), weights += tile.pitch) {
        __m512 weight[F];
        BITPRESS_UNROLL
        for (int f = 0; f < F; ++f) weight[f] = _mm512_loadu_ps(weights + f * kVectorBytes);
        BITPRESS_UNROLL
        for (int p = 0; p < P; ++p) {
          float number;
          memcpy(&number, row + p * pixel_bytes, sizeof number);
          const __m512 x = _mm512_set1_ps(number);
          BITPRESS_UNROLL
          for (int f = 0; f < F; ++f) sum[p][f] = _mm512_fmadd_ps(weight[f], x, sum[p][f]);
        }
      }
    }
    BITPRESS_UNROLL
    for (int p = 0; p < P; ++p) {
      BITPRESS_UNROLL
      for (int f = 0; f < F; ++f) {
        float* to = static_cast<float*>(tile.sums) + p * tile.sums_pitch + f * kLanes;
        if (tile.accumulate) sum[p][f] = _mm512_add_ps(_mm512_loadu_ps(to), sum[p][f]);
        _mm512_storeu_ps(to, sum[p][f]);
      }
    }
  }
};

}  // namespace

constexpr ProductKernel kAvx512MultiplyF32 = {
    "multiply_f32", BP_F32,  false, 1, sizeof(float), 1, 32, kLanes, 4, false,
    prepare,        nullptr, 0,     multiply_in_tiles<Block>,
    false};

}  // namespace bitpress
