// Products with float32, in vectors of gcc and clang. Weights that are bits become +1 and -1.
//
// Only portable.cpp includes this file, so that everything has internal linkage.
#pragma once
#include "portable_vectors.h"

namespace bitpress {
namespace {

// A group is one number: the prepared row is the row, without the gaps between pixels.
void prepare_numbers(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out,
                     int32_t*) {
  float* to = static_cast<float*>(out);
  for (int64_t p = 0; p < pixels; ++p, to += channels) {
    memcpy(to, static_cast<const float*>(in) + p * pitch,
           static_cast<size_t>(channels) * sizeof(float));
  }
}

struct MultiplyBlock {
  using Sum = float;
  static constexpr int kLanes = 4;
  static constexpr int kVectorBytes = 16;
  static constexpr int64_t kChunk = kFloatChunk;
  static constexpr int kMostVectors = 4;
  static constexpr int most_vectors(int) { return kMostVectors; }
  static constexpr int most_pixels(int vectors) { return vectors <= 2 ? 4 : 3; }

  template <int P, int F>
  static void run(const Tile& tile) {
    F32x4 sums[P][F] = {};
    const uint8_t* weights = tile.weights;
    const int64_t pixel_bytes = tile.window->pixel_bytes;
    Runs runs(tile, sizeof(float));
    const uint8_t* numbers;
    while (const int64_t groups = runs.next(numbers)) {
      for (int64_t g = 0; g < groups; ++g) {
        F32x4 w[F];
        BITPRESS_UNROLL
        for (int f = 0; f < F; ++f) w[f] = load<F32x4>(weights + f * kVectorBytes);
        BITPRESS_UNROLL
        for (int p = 0; p < P; ++p) {
          const float x = *reinterpret_cast<const float*>(numbers + p * pixel_bytes);
          BITPRESS_UNROLL
          for (int f = 0; f < F; ++f) sums[p][f] += x * w[f];
        }
        numbers += sizeof(float);
        weights += tile.pitch;
      }
    }
    for (int p = 0; p < P; ++p) {
      float* to = static_cast<float*>(tile.sums) + p * tile.sums_pitch;
      for (int f = 0; f < F; ++f, to += kLanes) {
        store(to, tile.accumulate ? load<F32x4>(to) + sums[p][f] : sums[p][f]);
      }
    }
  }
};

constexpr int kMultiplyVectors = 8;

// A word is the bits of eight channels for one filter.
void expand_to_signs(const void* weights, int vectors, int64_t groups, void* panel) {
  const uint8_t* words = static_cast<const uint8_t*>(weights);
  uint8_t* signs = static_cast<uint8_t*>(panel);
  const int64_t pitch = vectors * MultiplyBlock::kVectorBytes;
  for (int64_t left = groups; left > 0; left -= kWordBits, signs += kWordBits * pitch) {
    const int64_t bits = left < kWordBits ? left : kWordBits;
    for (int v = 0; v < vectors; ++v, words += MultiplyBlock::kLanes) {
      U32x4 unset = ~__builtin_convertvector(load<U8x4>(words), U32x4);
      for (int64_t g = 0; g < bits; ++g, unset >>= 1) {
        const U32x4 number = (unset & 1) << 31 | 0x3F800000u;  // 1, or -1
        store(signs + g * pitch + v * MultiplyBlock::kVectorBytes, number);
      }
    }
  }
}

constexpr ProductKernel kExpandF32 = {
    "expand_f32",
    BP_F32,
    true,
    1,
    sizeof(float),
    kWordBits,
    kWordBits,
    MultiplyBlock::kLanes,
    kMultiplyVectors,
    false,
    prepare_numbers,
    expand_to_signs,
    sizeof(float),
    multiply_in_tiles<MultiplyBlock>,
    false,
};

constexpr ProductKernel kMultiplyF32 = {
    "multiply_f32",
    BP_F32,
    false,
    1,
    sizeof(float),
    1,
    32,
    MultiplyBlock::kLanes,
    kMultiplyVectors,
    false,
    prepare_numbers,
    nullptr,
    0,
    multiply_in_tiles<MultiplyBlock>,
    false,
};

}  // namespace
}  // namespace bitpress
