// Products of bits by table look-up, in plain C++: four weights at a time are an index into the 16
// sums that four numbers can make.
//
// Only this directory's portable.cpp includes this file, so that everything has internal linkage.
#pragma once
#include <string.h>

#include "../kernel_set.h"

namespace bitpress {
namespace {

constexpr int kLookupChannels = 4;
constexpr int kLookupEntries = 16;
constexpr int kLookupWordGroups = 2;  // a byte of weights is two indices
constexpr int kLookupLanes = 16;
constexpr int kLookupVectors = 4;

// Entry i is the sum of the x[c] with bit c of i set.
void make_table(const uint8_t* x, uint16_t* table) {
  for (int i = 0; i < kLookupEntries; i++) {
    table[i] = static_cast<uint16_t>((i & 1) * x[0] + (i >> 1 & 1) * x[1] + (i >> 2 & 1) * x[2] +
                                     (i >> 3) * x[3]);
  }
}

// Entry i is the sum of x[c] where bit c of i is set, of -x[c] elsewhere.
void make_table(const float* x, float* table) {
  for (int i = 0; i < kLookupEntries; i++) {
    const float a = i & 1 ? x[0] : -x[0], b = i & 2 ? x[1] : -x[1];
    const float c = i & 4 ? x[2] : -x[2], d = i & 8 ? x[3] : -x[3];
    table[i] = (a + b) + (c + d);
  }
}

template <typename Input, typename Entry>
void prepare_tables(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out) {
  Entry* table = static_cast<Entry*>(out);
  for (int64_t p = 0; p < pixels; p++) {
    const Input* pixel = static_cast<const Input*>(in) + p * pitch;
    for (int64_t c = 0; c < channels; c += kLookupChannels) {
      Input x[kLookupChannels] = {};
      const int64_t present = channels - c < kLookupChannels ? channels - c : kLookupChannels;
      memcpy(x, pixel + c, static_cast<size_t>(present) * sizeof(Input));
      make_table(x, table);
      table += kLookupEntries;
    }
  }
  memset(table, 0, (kLookupWordGroups - 1) * kLookupEntries * sizeof(Entry));
}

void prepare_i16(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out,
                 int32_t* sums) {
  prepare_tables<uint8_t, uint16_t>(in, pitch, pixels, channels, out);
  for (int64_t p = 0; p < pixels; p++) {
    const uint8_t* pixel = static_cast<const uint8_t*>(in) + p * pitch;
    uint32_t sum = 0;
    for (int64_t c = 0; c < channels; c++) sum += pixel[c];
    sums[p] = static_cast<int32_t>(sum);
  }
}

void prepare_f32(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out,
                 int32_t*) {
  prepare_tables<float, float>(in, pitch, pixels, channels, out);
}

// One pixel and one vector of filters. Sum is uint32_t, which wraps around as int32 should, or
// float; each filter's look-ups are added one after the other, whatever else is computed.
template <typename Entry, typename Sum>
void look_up(const Window& window, int64_t pixel_byte, const uint8_t* weights, int64_t word_bytes,
             Sum* sums) {
  const int64_t words = (window.groups + kLookupWordGroups - 1) / kLookupWordGroups;
  for (int64_t s = 0; s < window.segments; s++) {
    const Entry* table = reinterpret_cast<const Entry*>(window.rows[s] + pixel_byte);
    for (int64_t w = 0; w < words; w++, weights += word_bytes, table += 2 * kLookupEntries) {
      const bool both = 2 * w + 1 < window.groups;
      for (int f = 0; f < kLookupLanes; f++) {
        sums[f] += table[weights[f] & 15];
        if (both) sums[f] += table[kLookupEntries + (weights[f] >> 4)];
      }
    }
  }
}

template <typename Entry, typename Sum>
void multiply_by_look_up(const Window& window, const void* weights, int vectors, int pixels,
                         void* sums, int64_t sums_pitch, bool accumulate) {
  const uint8_t* words = static_cast<const uint8_t*>(weights);
  for (int p = 0; p < pixels; p++) {
    for (int v = 0; v < vectors; v++) {
      Sum* to = static_cast<Sum*>(sums) + p * sums_pitch + v * kLookupLanes;
      Sum block[kLookupLanes] = {};
      if (accumulate) memcpy(block, to, sizeof block);
      look_up<Entry, Sum>(window, window.first_byte + p * window.pixel_bytes,
                          words + v * kLookupLanes, vectors * kLookupLanes, block);
      memcpy(to, block, sizeof block);
    }
  }
}

const ProductKernel kLookupI16 = {
    "lookup_i16",
    BP_U8,
    true,
    kLookupChannels,
    kLookupEntries * sizeof(uint16_t),
    kLookupWordGroups,
    8,
    kLookupLanes,
    kLookupVectors,
    true,
    prepare_i16,
    nullptr,
    0,
    multiply_by_look_up<uint16_t, uint32_t>,
};

const ProductKernel kLookupF32 = {
    "lookup_f32",
    BP_F32,
    true,
    kLookupChannels,
    kLookupEntries * sizeof(float),
    kLookupWordGroups,
    8,
    kLookupLanes,
    kLookupVectors,
    false,
    prepare_f32,
    nullptr,
    0,
    multiply_by_look_up<float, float>,
};

}  // namespace
}  // namespace bitpress
