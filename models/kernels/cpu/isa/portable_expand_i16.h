// Products of bits with codes, in vectors of gcc and clang: the bits as masks of 16 bits, under
// which the codes that count as ones are added.
//
// Only portable.cpp includes this file, so that everything has internal linkage.
#pragma once
#include "portable_vectors.h"

namespace bitpress {
namespace {

void prepare_codes(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out,
                   int32_t* sums) {
  uint8_t* to = static_cast<uint8_t*>(out);
  for (int64_t p = 0; p < pixels; ++p, to += channels) {
    memcpy(to, static_cast<const uint8_t*>(in) + p * pitch, static_cast<size_t>(channels));
    uint32_t sum = 0;
    for (int64_t c = 0; c < channels; ++c) sum += to[c];
    sums[p] = static_cast<int32_t>(sum);
  }
}

struct MaskBlock {
  using Sum = int32_t;
  static constexpr int kLanes = 8;
  static constexpr int kVectorBytes = 16;
  static constexpr int kChunk = 256;  // 256 * 255 is less than 2^16
  static constexpr int kMostVectors = 4;
  static constexpr int most_vectors(int) { return kMostVectors; }
  static constexpr int most_pixels(int vectors) { return vectors <= 2 ? 4 : 2; }

  template <int P, int F>
  static void run(const Tile& tile) {
    U16x8 sums[P][F] = {};
    const uint8_t* masks = tile.weights;
    const int64_t pixel_bytes = tile.window->pixel_bytes;
    Runs runs(tile, 1);
    const uint8_t* codes;
    while (const int64_t groups = runs.next(codes)) {
      for (int64_t g = 0; g < groups; ++g, ++codes, masks += tile.pitch) {
        U16x8 x[P];
        BITPRESS_UNROLL
        for (int p = 0; p < P; ++p) x[p] = U16x8{} + uint16_t{codes[p * pixel_bytes]};
        BITPRESS_UNROLL
        for (int f = 0; f < F; ++f) {
          const U16x8 mask = load<U16x8>(masks + f * kVectorBytes);
          BITPRESS_UNROLL
          for (int p = 0; p < P; ++p) sums[p][f] += x[p] & mask;
        }
      }
    }
    for (int p = 0; p < P; ++p) {
      uint16_t made[F * kLanes];
      memcpy(made, sums[p], sizeof made);
      uint32_t* to = static_cast<uint32_t*>(tile.sums) + p * tile.sums_pitch;
      for (int f = 0; f < F * kLanes; ++f) to[f] = (tile.accumulate ? to[f] : 0) + made[f];
    }
  }
};

// A word is the bits of eight channels for one filter.
void expand_to_masks(const void* weights, int vectors, int64_t groups, void* panel) {
  const uint8_t* words = static_cast<const uint8_t*>(weights);
  uint8_t* masks = static_cast<uint8_t*>(panel);
  const int64_t pitch = vectors * MaskBlock::kVectorBytes;
  for (int64_t left = groups; left > 0; left -= kWordBits, masks += kWordBits * pitch) {
    const int64_t bits = left < kWordBits ? left : kWordBits;
    for (int v = 0; v < vectors; ++v, words += MaskBlock::kLanes) {
      U16x8 word = __builtin_convertvector(load<U8x8>(words), U16x8);
      for (int64_t g = 0; g < bits; ++g, word >>= 1) {
        store(masks + g * pitch + v * MaskBlock::kVectorBytes, -(word & 1));
      }
    }
  }
}

constexpr ProductKernel kExpandI16 = {
    "expand_i16",
    BP_U8,
    true,
    1,
    1,
    kWordBits,
    kWordBits,
    MaskBlock::kLanes,
    MaskBlock::kMostVectors,
    true,
    prepare_codes,
    expand_to_masks,
    sizeof(uint16_t),
    multiply_in_tiles<MaskBlock>,
    false,
};

}  // namespace
}  // namespace bitpress
