// Products of bits with codes by table look-up. VPSHUFB looks up 32 bytes at once in a table of 16:
// four weights are an index, and the table has all sums of the four codes.
//
// Such a sum, of up to 1020, takes two bytes. They are the sums of the codes' low halves and of
// their high halves, 60 at most each. So four look-ups can be added up in bytes before they are
// widened, and there are no carries from one byte to the other.
#include <string.h>

#include "avx2_kernels.h"
#include "avx2_registers.h"

namespace bitpress {
namespace {

constexpr int kGroupChannels = 4;
constexpr int kGroupBytes = 32;  // 16 sums of low halves, 16 of high halves
constexpr int kLanes = 32;
constexpr int kVectors = 2;
constexpr int kQuad = 4;  // look-ups that a byte can hold

// Places in half a register, for VPSHUFB, which gives 0 for kNone; the same in both halves.
struct Places {
  alignas(32) uint8_t at[32];
};

constexpr uint8_t kNone = 0x80;

// Of eight numbers, two groups: byte 4 * k + i is for the sum that bits i pick from numbers 2 * k
// and 2 * k + 1, and this the place of the one for bit `bit`.
constexpr Places pick_number(int bit) {
  Places places{};
  for (int i = 0; i < 32; ++i) {
    places.at[i] = (i >> bit & 1) != 0 ? static_cast<uint8_t>(i % 16 / 4 * 2 + bit) : kNone;
  }
  return places;
}

// Of such sums: byte i is the sum that two bits of i, from `bit` on, pick from numbers `bit` and
// `bit` + 1 of a group.
constexpr Places pick_pair(int group, int bit) {
  Places places{};
  for (int i = 0; i < 32; ++i) {
    places.at[i] = static_cast<uint8_t>(8 * group + 2 * bit + (i % 16 >> bit & 3));
  }
  return places;
}

constexpr Places kNumbers[2] = {pick_number(0), pick_number(1)};
constexpr Places kPairs[2][2] = {{pick_pair(0, 0), pick_pair(0, 2)},
                                 {pick_pair(1, 0), pick_pair(1, 2)}};

// One from each of two sets of places, added.
inline __m256i sum_of_two(__m256i x, const Places (&places)[2]) {
  const auto first = reinterpret_cast<const __m256i*>(places[0].at);
  const auto second = reinterpret_cast<const __m256i*>(places[1].at);
  return _mm256_add_epi8(_mm256_shuffle_epi8(x, _mm256_load_si256(first)),
                         _mm256_shuffle_epi8(x, _mm256_load_si256(second)));
}

// The tables of the first `groups` of the four groups in 16 codes.
inline void make_tables(__m128i codes, int groups, uint8_t* out) {
  const __m128i half = _mm_set1_epi8(15);
  __m256i x = _mm256_set_m128i(_mm_and_si128(_mm_srli_epi16(codes, 4), half),
                               _mm_and_si128(codes, half));
  for (int g = 0; g < groups; g += 2) {
    const __m256i pairs = sum_of_two(x, kNumbers);
    __m256i* to = reinterpret_cast<__m256i*>(out + g * kGroupBytes);
    _mm256_storeu_si256(to, sum_of_two(pairs, kPairs[0]));
    if (g + 1 < groups) _mm256_storeu_si256(to + 1, sum_of_two(pairs, kPairs[1]));
    x = _mm256_srli_si256(x, 2 * kGroupChannels);
  }
}

void prepare(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out,
             int32_t* sums) {
  constexpr int64_t kAtOnce = 16;
  uint8_t* to = static_cast<uint8_t*>(out);
  for (int64_t p = 0; p < pixels; ++p) {
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

// An index of four bits to a byte: of two filters that share a byte, one goes to the first half of
// the bytes and one to the second. `widen` puts the sums in order again.
void expand(const void* weights, int vectors, int64_t groups, void* panel) {
  const __m128i* from = static_cast<const __m128i*>(weights);
  __m256i* to = static_cast<__m256i*>(panel);
  const __m256i half = _mm256_set1_epi8(15);
  if (vectors == 1) {
    for (int64_t g = 0; g < groups; ++g) {
      const __m128i x = _mm_loadu_si128(from + g);
      _mm256_storeu_si256(to + g,
                          _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(x, 4), x), half));
    }
    return;
  }
  for (int64_t g = 0; g < groups; ++g) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from) + g);
    _mm256_storeu_si256(to + 2 * g, _mm256_and_si256(x, half));
    _mm256_storeu_si256(to + 2 * g + 1, _mm256_and_si256(_mm256_srli_epi16(x, 4), half));
  }
}

// Sums of one plane's bytes: of each two neighbours as one number of 16 bits, modulo 2^16, and of
// the odd ones alone.
struct Plane {
  __m256i both, odd;
};

struct Sums {
  Plane low, high;
};

inline __m256i even_bytes(const Plane& x) {
  return _mm256_sub_epi16(x.both, _mm256_slli_epi16(x.odd, 8));
}

inline __m256i swap_halves(__m256i x) { return _mm256_permute2x128_si256(x, x, 1); }

inline void add_to(int32_t* sums, __m128i x, bool accumulate) {
  __m128i* to = reinterpret_cast<__m128i*>(sums);
  if (accumulate) x = _mm_add_epi32(x, _mm_loadu_si128(to));
  _mm_storeu_si128(to, x);
}

// Puts low and high halves together and the filters in order. After `expand`, with two vectors,
// even byte i of the first one is filter 4 * i, the odd byte after it 4 * i + 2; 4 * i + 1 and 4 *
// i + 3 are those of the second vector. With one vector, the second one is its upper half.
template <int F>
inline void widen(const Sums (&x)[F], int32_t* sums, bool accumulate) {
  __m256i low[4], high[4];  // of filters 4 * i, 4 * i + 1, ...
  BITPRESS_UNROLL
  for (int f = 0; f < F; ++f) {
    low[f] = even_bytes(x[f].low);
    high[f] = even_bytes(x[f].high);
    low[2 + f] = x[f].low.odd;
    high[2 + f] = x[f].high.odd;
  }
  if constexpr (F == 1) {
    BITPRESS_UNROLL
    for (int k = 0; k < 4; k += 2) {
      low[k + 1] = swap_halves(low[k]);
      high[k + 1] = swap_halves(high[k]);
    }
  }
  const __m256i weights = _mm256_set1_epi32(16 << 16 | 1);
  BITPRESS_UNROLL
  for (int h = 0; h < 2; ++h) {
    __m256i wide[4];
    BITPRESS_UNROLL
    for (int k = 0; k < 4; ++k) {
      const __m256i both = h == 0 ? _mm256_unpacklo_epi16(low[k], high[k])
                                  : _mm256_unpackhi_epi16(low[k], high[k]);
      wide[k] = _mm256_madd_epi16(both, weights);
    }
    const __m256i a = _mm256_unpacklo_epi32(wide[0], wide[1]);
    const __m256i b = _mm256_unpacklo_epi32(wide[2], wide[3]);
    const __m256i c = _mm256_unpackhi_epi32(wide[0], wide[1]);
    const __m256i d = _mm256_unpackhi_epi32(wide[2], wide[3]);
    const __m256i ordered[4] = {_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b),
                                _mm256_unpacklo_epi64(c, d), _mm256_unpackhi_epi64(c, d)};
    BITPRESS_UNROLL
    for (int i = 0; i < 4; ++i) {
      int32_t* to = sums + 16 * h + 4 * i;
      add_to(to, _mm256_castsi256_si128(ordered[i]), accumulate);
      if constexpr (F == 2) {
        add_to(to + kLanes, _mm256_extracti128_si256(ordered[i], 1), accumulate);
      }
    }
  }
}

inline void add_bytes(Plane& sums, __m256i bytes) {
  sums.both = _mm256_add_epi16(sums.both, bytes);
  sums.odd = _mm256_add_epi16(sums.odd, _mm256_srli_epi16(bytes, 8));
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
  for (int n = 0; n < N; ++n) {
    const __m256i low_table = load_table(tables + n * kGroupBytes);
    const __m256i high_table = load_table(tables + n * kGroupBytes + 16);
    BITPRESS_UNROLL
    for (int f = 0; f < F; ++f) {
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
  for (int f = 0; f < F; ++f) {
    add_bytes(sums[f].low, low[f]);
    add_bytes(sums[f].high, high[f]);
  }
}

struct Block {
  using Sum = int32_t;
  static constexpr int kLanes = bitpress::kLanes;
  static constexpr int kVectorBytes = 32;
  static constexpr int kChunk = 256;  // 256 * 60 is less than 2^15
  static constexpr int kMostVectors = kVectors;
  static constexpr int most_vectors(int) { return kMostVectors; }
  static constexpr int most_pixels(int) { return 1; }

  template <int P, int F>
  static void run(const Tile& tile) {
    Sums sums[F];
    BITPRESS_UNROLL
    for (int f = 0; f < F; ++f) {
      sums[f].low.both = sums[f].low.odd = _mm256_setzero_si256();
      sums[f].high.both = sums[f].high.odd = _mm256_setzero_si256();
    }
    const uint8_t* weights = tile.weights;
    const int64_t pitch = F * kVectorBytes;  // these are all vectors of the block
    Runs runs(tile, kGroupBytes);
    const uint8_t* tables;
    while (int64_t left = runs.next(tables)) {
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
    widen(sums, static_cast<int32_t*>(tile.sums), tile.accumulate);
  }
};

}  // namespace

constexpr ProductKernel kAvx2LookupI16 = {
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
    true,
};

}  // namespace bitpress
