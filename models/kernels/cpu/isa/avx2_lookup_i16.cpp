// Products of bits with codes by table look-up. VPSHUFB looks up 32 bytes at once in a table of 16:
// four weights are an index, and the table has all sums of the four codes.
//
// Such a sum, of up to 1020, takes two bytes. They are the sums of the codes' low halves and of their
// high halves, 60 at most each. So four look-ups can be added up in bytes before they are widened, and
// there are no carries from one byte to the other.
#include <string.h>

#include "avx2_kernels.h"
#include "avx2_tiles.h"

namespace bitpress {
namespace {

constexpr int kGroupChannels = 4;
constexpr int kGroupBytes = 32;  // 16 sums of low halves, 16 of high halves
constexpr int kLanes = 32;
constexpr int kVectors = 2;
constexpr int kQuad = 4;  // look-ups that a byte can hold

// Byte i of entry c is the place of the c-th of four numbers where bit c of i is set; else VPSHUFB
// gives 0. Twice, for a register's two halves.
struct Entries {
  alignas(32) uint8_t places[kGroupChannels][kGroupBytes];
};

constexpr Entries entries() {
  Entries made{};
  for (int c = 0; c < kGroupChannels; c++) {
    for (int i = 0; i < kGroupBytes; i++) {
      made.places[c][i] = (i >> c & 1) != 0 ? static_cast<uint8_t>(c) : 0x80;
    }
  }
  return made;
}

constexpr Entries kEntries = entries();

// The tables of `groups` groups, at most four, of 16 codes.
inline void make_tables(__m128i codes, int groups, uint8_t* out) {
  const __m128i half = _mm_set1_epi8(15);
  __m256i x = _mm256_set_m128i(_mm_and_si128(_mm_srli_epi16(codes, 4), half),
                               _mm_and_si128(codes, half));
  for (int g = 0; g < groups; g++) {
    __m256i table = _mm256_setzero_si256();
    BITPRESS_UNROLL
    for (int c = 0; c < kGroupChannels; c++) {
      const __m256i places =
          _mm256_load_si256(reinterpret_cast<const __m256i*>(kEntries.places[c]));
      table = _mm256_add_epi8(table, _mm256_shuffle_epi8(x, places));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + g * kGroupBytes), table);
    x = _mm256_srli_si256(x, kGroupChannels);
  }
}

void prepare(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out,
             int32_t* sums) {
  constexpr int64_t kAtOnce = 16;
  uint8_t* to = static_cast<uint8_t*>(out);
  for (int64_t p = 0; p < pixels; p++) {
    const uint8_t* from = static_cast<const uint8_t*>(in) + p * pitch;
    __m128i sum = _mm_setzero_si128();
    int64_t c = 0;
    for (; c + kAtOnce <= channels; c += kAtOnce) {
      const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + c));
      sum = _mm_add_epi64(sum, _mm_sad_epu8(codes, _mm_setzero_si128()));
      make_tables(codes, 4, to);
      to += 4 * kGroupBytes;
    }
    if (c < channels) {
      alignas(16) uint8_t rest[kAtOnce] = {};
      memcpy(rest, from + c, static_cast<size_t>(channels - c));
      const __m128i codes = _mm_load_si128(reinterpret_cast<const __m128i*>(rest));
      sum = _mm_add_epi64(sum, _mm_sad_epu8(codes, _mm_setzero_si128()));
      const int groups = static_cast<int>(channels - c + kGroupChannels - 1) / kGroupChannels;
      make_tables(codes, groups, to);
      to += groups * kGroupBytes;
    }
    sums[p] = _mm_cvtsi128_si32(_mm_add_epi64(sum, _mm_unpackhi_epi64(sum, sum)));
  }
}

// An index of four bits to a byte. Byte 2 * i of a vector is filter i, byte 2 * i + 1 is filter
// 16 + i: the even and the odd bytes are summed apart.
void expand(const void* weights, int vectors, int64_t groups, void* panel) {
  const __m128i* from = static_cast<const __m128i*>(weights);
  __m256i* to = static_cast<__m256i*>(panel);
  const __m128i half = _mm_set1_epi8(15);
  for (int64_t i = 0; i < groups * vectors; i++) {
    const __m128i pairs = _mm_loadu_si128(from + i);
    const __m128i even = _mm_and_si128(pairs, half);
    const __m128i odd = _mm_and_si128(_mm_srli_epi16(pairs, 4), half);
    const __m128i first = _mm_unpacklo_epi8(even, odd), last = _mm_unpackhi_epi8(even, odd);
    _mm256_storeu_si256(to + i, _mm256_set_m128i(_mm_unpackhi_epi8(first, last),
                                                 _mm_unpacklo_epi8(first, last)));
  }
}

// Sums of bytes, modulo 2^16: of both bytes of a 16-bit lane as they stand, and of the odd byte.
struct Sums {
  __m256i low, low_odd, high, high_odd;
};

inline void clear(Sums& sums) {
  sums.low = sums.low_odd = sums.high = sums.high_odd = _mm256_setzero_si256();
}

inline void add_to(int32_t* sums, __m128i x, bool accumulate) {
  __m256i* to = reinterpret_cast<__m256i*>(sums);
  __m256i wide = _mm256_cvtepu16_epi32(x);
  if (accumulate) wide = _mm256_add_epi32(wide, _mm256_loadu_si256(to));
  _mm256_storeu_si256(to, wide);
}

// What a chunk comes to is below 2^16, so that modulo 2^16 is enough.
inline void widen(const Sums& x, int32_t* sums, bool accumulate) {
  const __m256i odd = _mm256_add_epi16(x.low_odd, _mm256_slli_epi16(x.high_odd, 4));
  const __m256i both = _mm256_add_epi16(x.low, _mm256_slli_epi16(x.high, 4));
  const __m256i even = _mm256_sub_epi16(both, _mm256_slli_epi16(odd, 8));
  add_to(sums, _mm256_castsi256_si128(even), accumulate);
  add_to(sums + 8, _mm256_extracti128_si256(even, 1), accumulate);
  add_to(sums + 16, _mm256_castsi256_si128(odd), accumulate);
  add_to(sums + 24, _mm256_extracti128_si256(odd, 1), accumulate);
}

inline __m256i load_table(const uint8_t* table) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

// N look-ups, at most kQuad, for each of F vectors.
template <int N, int F>
inline __attribute__((always_inline)) void look_up(const uint8_t* tables, const uint8_t* weights,
                                                   int64_t group_pitch, Sums (&sums)[F]) {
  __m256i low[F], high[F];
  BITPRESS_UNROLL
  for (int n = 0; n < N; n++) {
    const __m256i low_table = load_table(tables + n * kGroupBytes);
    const __m256i high_table = load_table(tables + n * kGroupBytes + 16);
    BITPRESS_UNROLL
    for (int f = 0; f < F; f++) {
      __m256i index = _mm256_loadu_si256(
          reinterpret_cast<const __m256i*>(weights + n * group_pitch) + f);
      keep(index);
      const __m256i l = _mm256_shuffle_epi8(low_table, index);
      const __m256i h = _mm256_shuffle_epi8(high_table, index);
      low[f] = n == 0 ? l : _mm256_add_epi8(low[f], l);
      high[f] = n == 0 ? h : _mm256_add_epi8(high[f], h);
      keep(low[f]);
      keep(high[f]);
    }
  }
  BITPRESS_UNROLL
  for (int f = 0; f < F; f++) {
    sums[f].low = _mm256_add_epi16(sums[f].low, low[f]);
    sums[f].low_odd = _mm256_add_epi16(sums[f].low_odd, _mm256_srli_epi16(low[f], 8));
    sums[f].high = _mm256_add_epi16(sums[f].high, high[f]);
    sums[f].high_odd = _mm256_add_epi16(sums[f].high_odd, _mm256_srli_epi16(high[f], 8));
  }
}

struct Block {
  using Sum = int32_t;
  static constexpr int kLanes = bitpress::kLanes;
  static constexpr int kVectorBytes = 32;
  static constexpr int kChunk = 64;  // of sums of at most 1020, less than 2^16
  static constexpr int kMostVectors = kVectors;
  static constexpr int most_pixels(int) { return 1; }

  template <int P, int F>
  static void run(const Tile& tile) {
    Sums sums[F];
    BITPRESS_UNROLL
    for (int f = 0; f < F; f++) clear(sums[f]);
    const uint8_t* weights = tile.weights;
    const int64_t pitch = F * kVectorBytes;  // these are all vectors of the block
    Stretch stretch(tile, kGroupBytes);
    const uint8_t* tables;
    while (int64_t left = stretch.next(tables)) {
      for (; left >= kQuad; left -= kQuad) {
        look_up<kQuad, F>(tables, weights, pitch, sums);
        tables += kQuad * kGroupBytes;
        weights += kQuad * pitch;
      }
      if (left == 3) look_up<3, F>(tables, weights, pitch, sums);
      if (left == 2) look_up<2, F>(tables, weights, pitch, sums);
      if (left == 1) look_up<1, F>(tables, weights, pitch, sums);
      weights += left * pitch;
    }
    int32_t* to = static_cast<int32_t*>(tile.sums);
    BITPRESS_UNROLL
    for (int f = 0; f < F; f++) widen(sums[f], to + f * kLanes, tile.accumulate);
  }
};

}  // namespace

const ProductKernel kAvx2LookupI16 = {
    "lookup_i16",
    BP_U8,
    true,
    kGroupChannels,
    kGroupBytes,
    1,
    4,
    kLanes,
    kVectors,
    true,
    prepare,
    expand,
    1,
    multiply_in_tiles<Block>,
};

}  // namespace bitpress
