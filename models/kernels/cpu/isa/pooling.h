// Loops that a compiler turns into the SIMD of whatever instruction set it compiles for. Included by
// each set's source file, with internal linkage.
#pragma once
#include <stdint.h>

namespace bitpress {
namespace {

void max_u8(uint8_t* out, const uint8_t* in, int64_t count) {
  for (int64_t i = 0; i < count; i++) out[i] = in[i] > out[i] ? in[i] : out[i];
}

// NaN wins, as in torch's pooling.
void max_f32(float* out, const float* in, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    const float kept = in[i] <= out[i] || out[i] != out[i] ? out[i] : in[i];
    out[i] = kept;
  }
}

void add_f32(float* out, const float* in, int64_t count) {
  for (int64_t i = 0; i < count; i++) out[i] += in[i];
}

void numbers_of_codes(const uint8_t* in, float step, float low, float* out, int64_t count) {
  for (int64_t i = 0; i < count; i++) out[i] = static_cast<float>(in[i]) * step + low;
}

}  // namespace
}  // namespace bitpress
