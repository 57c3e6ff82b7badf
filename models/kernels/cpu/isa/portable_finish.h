// What follows a product, stage by stage on a few channels at a time: each stage is a loop that the
// compiler can vectorise, with one operation, rounded once.
//
// Only portable.cpp includes this file, so that everything has internal linkage.
#pragma once
#include "../kernel_set.h"

namespace bitpress {
namespace {

constexpr int kFinishChannels = 64;

// z of one basis, rounded to binary32. Integers wrap around.
void load_sums(const Finish& finish, int64_t basis, int64_t p, int64_t c, int count, float* z) {
  const int64_t at = basis * finish.basis_pitch + p * finish.sums_pitch + c;
  if (!finish.integer) {
    const float* sums = static_cast<const float*>(finish.sums) + at;
    for (int i = 0; i < count; ++i) z[i] = sums[i];
    return;
  }
  const uint32_t* sums = static_cast<const uint32_t*>(finish.sums) + at;
  const uint32_t less = finish.window_sums ? static_cast<uint32_t>(finish.window_sums[p]) : 0;
  uint32_t whole[kFinishChannels];
  for (int i = 0; i < count; ++i) whole[i] = (sums[i] << finish.doubled) - less;
  if (finish.offset) {
    const int32_t* offset = finish.offset + basis * finish.offset_pitch + c;
    for (int i = 0; i < count; ++i) whole[i] -= static_cast<uint32_t>(offset[i]);
  }
  for (int i = 0; i < count; ++i) z[i] = static_cast<float>(static_cast<int32_t>(whole[i]));
}

void sum_bases(const Finish& finish, int64_t p, int64_t c, int count, float* x) {
  for (int64_t k = 0; k < finish.bases; ++k) {
    float z[kFinishChannels];
    load_sums(finish, k, p, c, count, z);
    if (finish.base_scale) {
      const float* scale = finish.base_scale + k * finish.base_scale_pitch + c;
      for (int i = 0; i < count; ++i) z[i] *= scale[i];
    }
    if (k == 0) {
      for (int i = 0; i < count; ++i) x[i] = z[i];
    } else {
      for (int i = 0; i < count; ++i) x[i] += z[i];
    }
  }
}

// Comparisons that are false for NaN leave it as it is.
void activate(const Finish& finish, int64_t c, int count, float* x) {
  const float low = finish.activation_low, high = finish.activation_high;
  switch (finish.activation) {
    case BP_RELU:
      for (int i = 0; i < count; ++i) x[i] = x[i] < 0.0f ? 0.0f : x[i];
      break;
    case BP_HARDTANH:
      for (int i = 0; i < count; ++i) x[i] = x[i] < low ? low : x[i];
      for (int i = 0; i < count; ++i) x[i] = x[i] > high ? high : x[i];
      break;
    case BP_PRELU:
      for (int i = 0; i < count; ++i) {
        const float sloped = finish.slope[c + i] * x[i];
        x[i] = x[i] >= 0.0f ? x[i] : sloped;
      }
      break;
    default:
      break;
  }
}

// NaN becomes 0: it is not greater than 0.
void quantize(const Finish& finish, int count, const float* x, uint8_t* q) {
  if (finish.bits == 1) {
    const float threshold = finish.low + finish.step / 2.0f;
    for (int i = 0; i < count; ++i) q[i] = x[i] >= threshold ? 1 : 0;
    return;
  }
  const float greatest = static_cast<float>((1 << finish.bits) - 1);
  for (int i = 0; i < count; ++i) {
    float level = (x[i] - finish.low) / finish.step + 0.5f;
    // Bounds are whole numbers: cutting the fraction off after them is floor before them.
    level = level > 0.0f ? level : 0.0f;
    level = level < greatest ? level : greatest;
    q[i] = static_cast<uint8_t>(static_cast<int32_t>(level));
  }
}

void finish_tile(const Finish& finish, int64_t pixels, int64_t channels) {
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; c += kFinishChannels) {
      const int64_t left = channels - c;
      const int count = left < kFinishChannels ? static_cast<int>(left) : kFinishChannels;
      float x[kFinishChannels];
      sum_bases(finish, p, c, count, x);
      if (finish.gain) {
        for (int i = 0; i < count; ++i) x[i] *= finish.gain[c + i];
      }
      if (finish.shift) {
        for (int i = 0; i < count; ++i) x[i] += finish.shift[c + i];
      }
      if (finish.residual) {
        const float* residual = finish.residual + p * finish.pitch + c;
        for (int i = 0; i < count; ++i) x[i] += residual[i];
      }
      activate(finish, c, count, x);
      if (finish.out_f32) {
        float* out = finish.out_f32 + p * finish.pitch + c;
        for (int i = 0; i < count; ++i) out[i] = x[i];
      }
      if (finish.out_u8) quantize(finish, count, x, finish.out_u8 + p * finish.pitch + c);
    }
  }
}

}  // namespace
}  // namespace bitpress
