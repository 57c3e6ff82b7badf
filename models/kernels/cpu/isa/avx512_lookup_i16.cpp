// Bits times 8-bit codes by look-up: five weights are an index into the 32 sums that five
// activations can have, which fill one register, and VPERMW looks up 32 filters at once.
#include <string.h>

#include "avx512_intrinsics.h"
#include "avx512_kernels.h"
#include "avx512_pieces.h"

namespace bitpress {
namespace {

constexpr int kGroupChannels = 5;
constexpr int kGroupBytes = 64;
constexpr int kWordGroups = 3;
constexpr int kLanes = 32;
// Sums of 16 bits hold 51 look-ups, 51 * 5 * 255 = 65025.
constexpr int kWordsUntilFull = 51 / kWordGroups;

// Entry e of a table, a word, is the sum of the activations whose bit in e is set. Words 2d and
// 2d + 1 are a dword: both have the sum of channels 1 to 4 by the bits of d, which one VPDPBUSD
// gives, and the upper one channel 0 besides.
inline __m512i table_of(uint32_t channels_1_to_4, __m512i subsets, __m512i channel_0) {
  const __m512i sum =
      _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi32(channels_1_to_4), subsets);
  const __m512i twice = _mm512_or_si512(sum, _mm512_slli_epi32(sum, 16));
  return _mm512_mask_add_epi16(twice, 0xAAAAAAAAu, twice, channel_0);
}

// Byte c of dword d is bit c of d.
inline __m512i subsets_of_four() {
  const __m512i d = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i bit = _mm512_set1_epi32(0x08040201);
  const __m512i bytes = _mm512_mullo_epi32(d, _mm512_set1_epi32(0x01010101));
  return _mm512_maskz_set1_epi8(_mm512_test_epi8_mask(bytes, bit), 1);
}

inline int32_t sum_of(const uint8_t* x, int64_t count) {
  __m512i sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += 64) {
    const int64_t left = count - i;
    const __mmask64 mask = left < 64 ? (1ull << left) - 1 : ~0ull;
    sum = _mm512_add_epi64(
        sum, _mm512_sad_epu8(_mm512_maskz_loadu_epi8(mask, x + i), _mm512_setzero_si512()));
  }
  return static_cast<int32_t>(_mm512_reduce_add_epi64(sum));
}

void prepare(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out,
             int32_t* sums) {
  const __m512i subsets = subsets_of_four();
  const int64_t whole = channels / kGroupChannels;
  const int64_t rest = channels - whole * kGroupChannels;
  uint8_t* table = static_cast<uint8_t*>(out);
  for (int64_t p = 0; p < pixels; ++p) {
    const uint8_t* x = static_cast<const uint8_t*>(in) + p * pitch;
    sums[p] = sum_of(x, channels);
    for (int64_t g = 0; g < whole; ++g, x += kGroupChannels, table += kGroupBytes) {
      uint32_t upper;
      memcpy(&upper, x + 1, 4);
      _mm512_storeu_si512(table, table_of(upper, subsets, _mm512_set1_epi16(x[0])));
    }
    if (rest != 0) {
      uint32_t upper = 0;
      memcpy(&upper, x + 1, rest - 1);
      _mm512_storeu_si512(table, table_of(upper, subsets, _mm512_set1_epi16(x[0])));
      table += kGroupBytes;
    }
  }
  memset(table, 0, (kWordGroups - 1) * kGroupBytes);
}

struct Block {
  using Sum = int32_t;

  static constexpr int most_pixels(int vectors) { return vectors == 4 ? 6 : vectors == 3 ? 8 : vectors == 2 ? 12 : 16; }

  template <int P, int F>
  static void widen(__m512i (&narrow)[P][F], int32_t* sums, int64_t pitch, bool add) {
    const __m512i lower = _mm512_set_epi16(
        0, 15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4, 0, 3, 0, 2, 0,
        1, 0, 0);
    const __m512i upper = _mm512_add_epi16(lower, _mm512_set1_epi16(16));
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int f = 0; f < F; ++f) {
        int32_t* out = sums + p * pitch + f * kLanes;
        __m512i low = _mm512_maskz_permutexvar_epi16(0x55555555u, lower, narrow[p][f]);
        __m512i high = _mm512_maskz_permutexvar_epi16(0x55555555u, upper, narrow[p][f]);
        if (add) {
          low = _mm512_add_epi32(low, _mm512_loadu_si512(out));
          high = _mm512_add_epi32(high, _mm512_loadu_si512(out + 16));
        }
        _mm512_storeu_si512(out, low);
        _mm512_storeu_si512(out + 16, high);
        narrow[p][f] = _mm512_setzero_si512();
      }
    }
  }

  template <int P, int F>
  static void run(const Piece& piece) {
    const Window& window = *piece.window;
    const int64_t pixel_bytes = window.pixel_bytes;
    const uint16_t* words = static_cast<const uint16_t*>(piece.weights);
    int32_t* sums = static_cast<int32_t*>(piece.sums);
    // A multiplication that keeps the upper half is a shift to the right, on other ports than
    // permutations need.
    const __m512i shift = _mm512_set1_epi16(1 << (16 - kGroupChannels));

    __m512i narrow[P][F];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int f = 0; f < F; ++f) narrow[p][f] = _mm512_setzero_si512();
    }
    bool add = piece.accumulate;
    int64_t room = kWordsUntilFull;
    for (int64_t s = 0; s < window.segments; ++s) {
      const uint8_t* table = window.rows[s] + piece.first_byte;
      int64_t left = (window.groups + kWordGroups - 1) / kWordGroups;
      while (left > 0) {
        const int64_t count = left < room ? left : room;
        for (int64_t i = 0; i < count; ++i) {
          __m512i index[F];
#pragma GCC unroll 4
          for (int f = 0; f < F; ++f) index[f] = _mm512_loadu_si512(words + f * kLanes);
#pragma GCC unroll 3
          for (int g = 0; g < kWordGroups; ++g) {
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
              __m512i entries =
                  _mm512_loadu_si512(table + p * pixel_bytes + g * kGroupBytes);
              if (F > 1) pin(entries);
#pragma GCC unroll 4
              for (int f = 0; f < F; ++f) {
                narrow[p][f] = _mm512_add_epi16(narrow[p][f],
                                                _mm512_permutexvar_epi16(index[f], entries));
                pin(narrow[p][f]);
              }
            }
            if (g + 1 < kWordGroups) {
#pragma GCC unroll 4
              for (int f = 0; f < F; ++f) index[f] = _mm512_mulhi_epu16(index[f], shift);
            }
          }
          words += F * kLanes;
          table += kWordGroups * kGroupBytes;
        }
        left -= count;
        room -= count;
        if (room == 0) {
          widen<P, F>(narrow, sums, piece.sums_pitch, add);
          add = true;
          room = kWordsUntilFull;
        }
      }
    }
    if (room < kWordsUntilFull || !add) widen<P, F>(narrow, sums, piece.sums_pitch, add);
  }
};

}  // namespace

const ProductKernel kAvx512LookupI16 = {
    "lookup_i16", BP_U8,   true, kGroupChannels, kGroupBytes, kWordGroups, 16, kLanes, 4, true,
    prepare,      nullptr, 0,    multiply_in_pieces<Block>};

}  // namespace bitpress
