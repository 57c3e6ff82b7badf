// Products of float32 weights: a multiplication and an addition at once, for eight filters.
#include <string.h>

#include "avx2_kernels.h"
#include "avx2_registers.h"

namespace bitpress {
namespace {

constexpr int kLanes = 8;
constexpr int kVectors = 4;

// A group is one number: the prepared row is the row, without the gaps between pixels.
void prepare(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out, int32_t*) {
  for (int64_t p = 0; p < pixels; ++p) {
    memcpy(static_cast<float*>(out) + p * channels, static_cast<const float*>(in) + p * pitch,
           static_cast<size_t>(channels) * sizeof(float));
  }
}

struct Block {
  using Sum = float;
  static constexpr int kLanes = bitpress::kLanes;
  static constexpr int kVectorBytes = 32;
  static constexpr int64_t kChunk = kFloatChunk;
  static constexpr int kMostVectors = kVectors;
  static constexpr int most_vectors(int) { return kMostVectors; }
  static constexpr int most_pixels(int vectors) { return vectors == 1 ? 8 : 12 / vectors; }

  template <int P, int F>
  static void run(const Tile& tile) {
    __m256 sums[P][F];
    BITPRESS_UNROLL
    for (int p = 0; p < P; ++p) {
      BITPRESS_UNROLL
      for (int f = 0; f < F; ++f) sums[p][f] = _mm256_setzero_ps();
    }
    const uint8_t* weights = tile.weights;
    const int64_t pixel_bytes = tile.window->pixel_bytes;
    Runs runs(tile, sizeof(float));
    const uint8_t* numbers;
    while (const int64_t groups = runs.next(numbers)) {
      for (int64_t g = 0; g < groups; ++g) {
        __m256 w[F];
        BITPRESS_UNROLL
        for (int f = 0; f < F; ++f) {
          w[f] = _mm256_loadu_ps(reinterpret_cast<const float*>(weights) + f * kLanes);
        }
        BITPRESS_UNROLL
        for (int p = 0; p < P; ++p) {
          const __m256 x =
              _mm256_broadcast_ss(reinterpret_cast<const float*>(numbers + p * pixel_bytes));
          BITPRESS_UNROLL
          for (int f = 0; f < F; ++f) sums[p][f] = _mm256_fmadd_ps(x, w[f], sums[p][f]);
        }
        numbers += sizeof(float);
        weights += tile.pitch;
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

constexpr ProductKernel kAvx2MultiplyF32 = {
    "multiply_f32",
    BP_F32,
    false,
    1,
    sizeof(float),
    1,
    32,
    kLanes,
    kVectors,
    false,
    prepare,
    nullptr,
    0,
    multiply_in_tiles<Block>,
    false,
};

}  // namespace bitpress
