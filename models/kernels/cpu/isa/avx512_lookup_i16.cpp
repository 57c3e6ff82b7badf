// Bits times 8-bit codes by look-up: five weights are an index into the 32 sums that five
// activations can have, which fill one register, and VPERMW looks up 32 filters at once.
#include <string.h>

#include "avx512_intrinsics.h"
#include "avx512_kernels.h"
#include "tiles.h"

namespace bitpress {
namespace {

constexpr int kGroupChannels = 5;
constexpr int kGroupBytes = 64;
constexpr int kWordGroups = 3;
constexpr int kLanes = 32;
constexpr int kLookupsUntilFull = 51;  // of 16 bits: 51 * 5 * 255 = 65025

// Entry e of a table, a word, is the sum of the activations whose bit in e is set. Words 2d and
// 2d + 1 have the sum of channels 1 to 4 by the bits of d, which one VPDPBUSD gives as a dword, and
// the odd one channel 0 besides.
class Tables {
 public:
  // x: five activations.
  inline __m512i of_five(const uint8_t* x) const {
    uint32_t upper;
    memcpy(&upper, x + 1, sizeof upper);
    // From memory, which the intrinsic for one byte cannot say.
    __m512i first;
    asm("vpbroadcastb %1, %0%{%2%}%{z%}" : "=v"(first) : "m"(*x), "Yk"(kOddWords));
    return combined(first, _mm512_set1_epi32(upper));
  }

  // x: fewer than five; the others count as 0.
  inline __m512i of_rest(const uint8_t* x, int64_t count) const {
    const __m128i all = _mm_maskz_loadu_epi8(static_cast<__mmask16>((1 << count) - 1), x);
    return combined(_mm512_maskz_broadcastb_epi8(kOddWords, all),
                    _mm512_broadcastd_epi32(_mm_srli_si128(all, 1)));
  }

 private:
  static constexpr __mmask64 kOddWords = 0x4444444444444444;  // their lower bytes

  inline __m512i combined(__m512i first, __m512i upper) const {
    const __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), upper, subsets_);
    return _mm512_add_epi16(first, _mm512_shuffle_epi8(sum, twice_));
  }

  // Byte c of dword d is bit c of d.
  static __m512i subsets_of_four() {
    const __m512i d = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i bytes = _mm512_mullo_epi32(d, _mm512_set1_epi32(0x01010101));
    const __mmask64 ones = _mm512_test_epi8_mask(bytes, _mm512_set1_epi32(0x08040201));
    return _mm512_maskz_set1_epi8(ones, 1);
  }

  __m512i subsets_ = subsets_of_four();
  // The lower word of a dword, to both of its words.
  __m512i twice_ = _mm512_set4_epi32(0x0D0C0D0C, 0x09080908, 0x05040504, 0x01000100);
};

inline int32_t sum_of(const uint8_t* x, int64_t count) {
  const __m512i zero = _mm512_setzero_si512();
  __m512i sum = zero;
  for (; count >= 64; count -= 64, x += 64)
    sum = _mm512_add_epi64(sum, _mm512_sad_epu8(_mm512_loadu_si512(x), zero));
  if (count > 0) {
    const __m512i last = _mm512_maskz_loadu_epi8((1ull << count) - 1, x);
    sum = _mm512_add_epi64(sum, _mm512_sad_epu8(last, zero));
  }
  return static_cast<int32_t>(_mm512_reduce_add_epi64(sum));
}

void prepare(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out,
             int32_t* sums) {
  constexpr int kAtOnce = 4;
  const Tables tables;
  const int64_t whole = channels / kGroupChannels;
  const int64_t rest = channels - whole * kGroupChannels;
  uint8_t* to = static_cast<uint8_t*>(out);
  for (int64_t p = 0; p < pixels; ++p) {
    const uint8_t* x = static_cast<const uint8_t*>(in) + p * pitch;
    sums[p] = sum_of(x, channels);
    int64_t left = whole;
    for (; left >= kAtOnce; left -= kAtOnce) {
#pragma GCC unroll 4
      for (int g = 0; g < kAtOnce; ++g)
        _mm512_storeu_si512(to + g * kGroupBytes, tables.of_five(x + g * kGroupChannels));
      x += kAtOnce * kGroupChannels;
      to += kAtOnce * kGroupBytes;
    }
    for (; left > 0; --left, x += kGroupChannels, to += kGroupBytes)
      _mm512_storeu_si512(to, tables.of_five(x));
    if (rest != 0) {
      _mm512_storeu_si512(to, tables.of_rest(x, rest));
      to += kGroupBytes;
    }
  }
}

// Sums of P pixels for F vectors of 32 filters, in 16 bits until those are full.
template <int P, int F>
struct Sums {
  __m512i narrow[P][F];
  int64_t room = kLookupsUntilFull;
  bool add;  // to the sums of 32 bits that are there
  int32_t* sums;
  int64_t pitch;

  explicit Sums(const Tile& tile)
      : add(tile.accumulate), sums(static_cast<int32_t*>(tile.sums)), pitch(tile.sums_pitch) {
    clear();
  }

  inline void clear() {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int f = 0; f < F; ++f) narrow[p][f] = _mm512_setzero_si512();
    }
  }

  // The five lowest bits of each index are looked up. Sums stay below 2^16; that the addition
  // saturates lets it run on just those ports that permutations leave free (Zen 5).
  inline void look_up(const __m512i (&index)[F], const uint8_t* table, int64_t pixel_bytes) {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      __m512i entries = _mm512_loadu_si512(table + p * pixel_bytes);
      if (F > 1) pin(entries);
#pragma GCC unroll 4
      for (int f = 0; f < F; ++f) {
        narrow[p][f] =
            _mm512_adds_epu16(narrow[p][f], _mm512_permutexvar_epi16(index[f], entries));
        pin(narrow[p][f]);
      }
    }
  }

  inline void widen() {
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
      }
    }
    clear();
    add = true;
    room = kLookupsUntilFull;
  }
};

struct Block {
  using Sum = int32_t;
  static constexpr int kLanes = bitpress::kLanes;
  static constexpr int kVectorBytes = 64;
  static constexpr int64_t kChunk = kWhole;
  static constexpr int kMostVectors = 4;
  static constexpr int most_vectors(int) { return kMostVectors; }
  static constexpr int most_pixels(int vectors) { return vectors == 4 ? 5 : vectors == 3 ? 6 : 8; }

  template <int F>
  static inline void load(__m512i (&index)[F], const uint8_t* words) {
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f) index[f] = _mm512_loadu_si512(words + f * kVectorBytes);
  }

  template <int F>
  static inline void shift(__m512i (&index)[F]) {
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f) index[f] = _mm512_srli_epi16(index[f], kGroupChannels);
  }

  template <int P, int F>
  static void run(const Tile& tile) {
    const int64_t pixel_bytes = tile.window->pixel_bytes;
    const uint8_t* words = tile.weights;
    Sums<P, F> sums(tile);
    Runs runs(tile, kGroupBytes);
    const uint8_t* table;
    while (int64_t left = runs.next(table)) {
      while (left >= kWordGroups) {
        if (sums.room < kWordGroups) sums.widen();
        const int64_t most = left < sums.room ? left : sums.room;
        const int64_t count = most / kWordGroups;
        for (int64_t i = 0; i < count; ++i) {
          __m512i index[F];
          load<F>(index, words);
          sums.look_up(index, table, pixel_bytes);
          shift<F>(index);
          sums.look_up(index, table + kGroupBytes, pixel_bytes);
          shift<F>(index);
          sums.look_up(index, table + 2 * kGroupBytes, pixel_bytes);
          words += tile.pitch;
          table += kWordGroups * kGroupBytes;
        }
        left -= count * kWordGroups;
        sums.room -= count * kWordGroups;
      }
      if (left > 0) {
        if (sums.room < left) sums.widen();
        sums.room -= left;
        __m512i index[F];
        load<F>(index, words);
        for (; left > 0; --left) {
          sums.look_up(index, table, pixel_bytes);
          shift<F>(index);
          table += kGroupBytes;
        }
        words += tile.pitch;
      }
    }
    sums.widen();
  }
};

}  // namespace

constexpr ProductKernel kAvx512LookupI16 = {
    "lookup_i16", BP_U8,   true, kGroupChannels, kGroupBytes, kWordGroups, 16, kLanes, 4, true,
    prepare,      nullptr, 0,    multiply_in_tiles<Block>,
    true};

}  // namespace bitpress
