// Float32 weights times float32.
#include <string.h>

#include "avx512_intrinsics.h"
#include "avx512_kernels.h"
#include "avx512_pieces.h"

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

  static constexpr int most_pixels(int vectors) {
    return vectors == 4 ? 6 : vectors == 3 ? 8 : vectors == 2 ? 8 : 16;
  }

  template <int P, int F>
  static void run(const Piece& piece) {
    const Window& window = *piece.window;
    const int64_t pixel_bytes = window.pixel_bytes;
    const float* panel = static_cast<const float*>(piece.weights);
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
      const uint8_t* row = window.rows[s] + piece.first_byte;
      for (int64_t g = 0; g < window.groups; ++g) {
        __m512 weight[F];
#pragma GCC unroll 4
        for (int f = 0; f < F; ++f) weight[f] = _mm512_loadu_ps(panel + f * kLanes);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
          float number;
          memcpy(&number, row + p * pixel_bytes, sizeof number);
          const __m512 x = _mm512_set1_ps(number);
#pragma GCC unroll 4
          for (int f = 0; f < F; ++f) sum[p][f] = _mm512_fmadd_ps(weight[f], x, sum[p][f]);
        }
        row += sizeof(float);
        panel += F * kLanes;
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

const ProductKernel kAvx512MultiplyF32 = {
    "multiply_f32", BP_F32,  false, 1, sizeof(float), 1, 32, kLanes, 4, false,
    prepare,        nullptr, 0,     multiply_in_pieces<Block>};

}  // namespace bitpress
