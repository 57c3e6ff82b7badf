// Loops that a compiler turns into the SIMD of whatever instruction set it compiles for. Included
// by each set's source file, with internal linkage.
#pragma once
#include <stdint.h>

namespace bitpress {
namespace {

// NaN wins, as in torch's pooling.
inline float greater(float most, float x) { return x <= most || most != most ? most : x; }
inline uint8_t greater(uint8_t most, uint8_t x) { return x > most ? x : most; }

// kAtOnce numbers stay in registers while all inputs are looked at.
template <int kAtOnce, typename Number>
void greatest_of(const Number* const* in, int64_t inputs, int64_t count, Number* out) {
  int64_t c = 0;
  for (; c + kAtOnce <= count; c += kAtOnce) {
    Number most[kAtOnce];
    for (int k = 0; k < kAtOnce; ++k) most[k] = in[0][c + k];
    for (int64_t i = 1; i < inputs; ++i) {
      const Number* x = in[i] + c;
      for (int k = 0; k < kAtOnce; ++k) most[k] = greater(most[k], x[k]);
    }
    for (int k = 0; k < kAtOnce; ++k) out[c + k] = most[k];
  }
  for (; c < count; ++c) {
    Number most = in[0][c];
    for (int64_t i = 1; i < inputs; ++i) most = greater(most, in[i][c]);
    out[c] = most;
  }
}

void greatest_u8(const uint8_t* const* in, int64_t inputs, int64_t count, uint8_t* out) {
  greatest_of<64>(in, inputs, count, out);
}

void greatest_f32(const float* const* in, int64_t inputs, int64_t count, float* out) {
  greatest_of<16>(in, inputs, count, out);
}

void add_f32(float* out, const float* in, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] += in[i];
}

void numbers_of_codes(const uint8_t* in, float step, float low, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(in[i]) * step + low;
}

}  // namespace
}  // namespace bitpress
