// Products of float32 weights, in plain C++ that the compiler turns into SIMD along the filters.
//
// Only this directory's portable.cpp includes this file, so that everything has internal linkage.
#pragma once
#include <string.h>

#include "../kernel_set.h"

namespace bitpress {
namespace {

constexpr int kMultiplyLanes = 8;
constexpr int kMultiplyVectors = 4;

// A group is one number: the prepared row is the row, without the gaps between pixels.
void prepare_numbers(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out,
                     int32_t*) {
  for (int64_t p = 0; p < pixels; p++) {
    memcpy(static_cast<float*>(out) + p * channels, static_cast<const float*>(in) + p * pitch,
           static_cast<size_t>(channels) * sizeof(float));
  }
}

// Some pixels and one vector of filters. Each sum is added up in the order of the groups, so that
// it does not depend on the pixels that it is computed with.
template <int kPixels>
void multiply_block(const Window& window, int64_t pixel_byte, const float* weights,
                    int64_t weights_pitch, float* sums, int64_t sums_pitch, bool accumulate) {
  float block[kPixels][kMultiplyLanes] = {};
  if (accumulate) {
    for (int p = 0; p < kPixels; p++) memcpy(block[p], sums + p * sums_pitch, sizeof block[p]);
  }
  for (int64_t s = 0; s < window.segments; s++) {
    const uint8_t* row = window.rows[s] + pixel_byte;
    for (int64_t g = 0; g < window.groups; g++, weights += weights_pitch) {
      for (int p = 0; p < kPixels; p++) {
        const float x = reinterpret_cast<const float*>(row + p * window.pixel_bytes)[g];
        for (int f = 0; f < kMultiplyLanes; f++) block[p][f] += x * weights[f];
      }
    }
  }
  for (int p = 0; p < kPixels; p++) memcpy(sums + p * sums_pitch, block[p], sizeof block[p]);
}

void multiply_numbers(const Window& window, const void* weights, int vectors, int pixels,
                      void* sums, int64_t sums_pitch, bool accumulate) {
  const int64_t pitch = vectors * kMultiplyLanes;
  for (int v = 0; v < vectors; v++) {
    const float* panel = static_cast<const float*>(weights) + v * kMultiplyLanes;
    float* to = static_cast<float*>(sums) + v * kMultiplyLanes;
    int64_t at = window.first_byte;
    int p = 0;
    for (; p + 4 <= pixels; p += 4, at += 4 * window.pixel_bytes) {
      multiply_block<4>(window, at, panel, pitch, to + p * sums_pitch, sums_pitch, accumulate);
    }
    for (; p < pixels; p++, at += window.pixel_bytes) {
      multiply_block<1>(window, at, panel, pitch, to + p * sums_pitch, sums_pitch, accumulate);
    }
  }
}

const ProductKernel kMultiplyF32 = {
    "multiply_f32",
    BP_F32,
    false,
    1,
    sizeof(float),
    1,
    32,
    kMultiplyLanes,
    kMultiplyVectors,
    false,
    prepare_numbers,
    nullptr,
    0,
    multiply_numbers,
};

}  // namespace
}  // namespace bitpress
