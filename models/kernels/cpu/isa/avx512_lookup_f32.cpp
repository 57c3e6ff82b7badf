// Bits times float32 by look-up: four weights are an index into the 16 sums that four activations,
// each added or subtracted, can have, and VPERMPS looks up 16 filters at once.
#include "avx512_intrinsics.h"
#include "avx512_kernels.h"
#include "tiles.h"

namespace bitpress {
namespace {

constexpr int kGroupChannels = 4;
constexpr int kGroupBytes = 64;
constexpr int kWordGroups = 8;
constexpr int kLanes = 16;

// +1 in the lanes whose number has the bit, -1 elsewhere.
inline __m512 signs(int bit) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __mmask16 set = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(1 << bit));
  return _mm512_mask_blend_ps(set, _mm512_set1_ps(-1.0f), _mm512_set1_ps(1.0f));
}

struct Signs {
  __m512 of[kGroupChannels];
};

// Products by +-1 are exact, so that fused or not makes no difference.
inline __m512 table_of(const float* x, const Signs& signs) {
  __m512 t = _mm512_mul_ps(signs.of[0], _mm512_set1_ps(x[0]));
  t = _mm512_fmadd_ps(signs.of[1], _mm512_set1_ps(x[1]), t);
  t = _mm512_fmadd_ps(signs.of[2], _mm512_set1_ps(x[2]), t);
  return _mm512_fmadd_ps(signs.of[3], _mm512_set1_ps(x[3]), t);
}

void prepare(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out,
             int32_t*) {
  const Signs sign{{signs(0), signs(1), signs(2), signs(3)}};
  const int64_t whole = channels / kGroupChannels;
  const int64_t rest = channels - whole * kGroupChannels;
  float* table = static_cast<float*>(out);
  for (int64_t p = 0; p < pixels; ++p) {
    const float* x = static_cast<const float*>(in) + p * pitch;
    for (int64_t g = 0; g < whole; ++g, x += kGroupChannels, table += 16)
      _mm512_storeu_ps(table, table_of(x, sign));
    if (rest != 0) {
      float last[kGroupChannels] = {};
      for (int64_t c = 0; c < rest; ++c) last[c] = x[c];
      _mm512_storeu_ps(table, table_of(last, sign));
      table += 16;
    }
  }
}

// Sums of P pixels for F vectors of 16 filters, on two levels (tiles.h). A function that is not
// inlined would have them in memory.
template <int P, int F>
struct Sums {
  __m512 fresh[P][F];
  int64_t room = kFloatChunk;  // groups that may still be added to these
  bool add;                    // to the sums that are there
  float* sums;
  int64_t pitch;

  explicit Sums(const Tile& tile)
      : add(tile.accumulate), sums(static_cast<float*>(tile.sums)), pitch(tile.sums_pitch) {
    clear();
  }

  __attribute__((always_inline)) inline void clear() {
    BITPRESS_UNROLL
    for (int p = 0; p < P; ++p) {
      BITPRESS_UNROLL
      for (int f = 0; f < F; ++f) fresh[p][f] = _mm512_setzero_ps();
    }
  }

  // One group: its look-ups, and the next group's bits moved to where they are looked up.
  __attribute__((always_inline)) inline void look_up(__m512i (&index)[F], const uint8_t* table,
                                                     int64_t pixel_bytes) {
    BITPRESS_UNROLL
    for (int p = 0; p < P; ++p) {
      __m512 entries = _mm512_loadu_ps(table + p * pixel_bytes);
      if (F > 1) pin(entries);
      BITPRESS_UNROLL
      for (int f = 0; f < F; ++f) {
        const __m512 found = _mm512_permutexvar_ps(index[f], entries);
        fresh[p][f] =
            (p + f) % 2 == 0 ? _mm512_add_ps(fresh[p][f], found) : added(found, fresh[p][f]);
        pin(fresh[p][f]);
      }
    }
    BITPRESS_UNROLL
    for (int f = 0; f < F; ++f) index[f] = _mm512_srli_epi32(index[f], kGroupChannels);
  }

  __attribute__((always_inline)) inline void flush() {
    BITPRESS_UNROLL
    for (int p = 0; p < P; ++p) {
      BITPRESS_UNROLL
      for (int f = 0; f < F; ++f) {
        float* to = sums + p * pitch + f * kLanes;
        if (add) fresh[p][f] = _mm512_add_ps(_mm512_loadu_ps(to), fresh[p][f]);
        _mm512_storeu_ps(to, fresh[p][f]);
      }
    }
    clear();
    add = true;
    room = kFloatChunk;
  }
};

struct Block {
  using Sum = float;
  static constexpr int kLanes = bitpress::kLanes;
  static constexpr int kVectorBytes = 64;
  static constexpr int64_t kChunk = kWhole;
  static constexpr int kMostVectors = 4;
  static constexpr int most_vectors(int) { return kMostVectors; }
  static constexpr int most_pixels(int vectors) {
    return vectors == 4 ? 6 : vectors == 3 ? 8 : vectors == 2 ? 12 : 16;
  }

  template <int F>
  static inline void load(__m512i (&index)[F], const uint8_t* words) {
    BITPRESS_UNROLL
    for (int f = 0; f < F; ++f) index[f] = _mm512_loadu_si512(words + f * kVectorBytes);
  }

  template <int P, int F>
  static void run(const Tile& tile) {
    const int64_t pixel_bytes = tile.window->pixel_bytes;
    const uint8_t* words = tile.weights;
    Sums<P, F> sums(tile);
    Runs runs(tile, kGroupBytes);
    const uint8_t* table;
    __m512i index[F];
    while (int64_t left = runs.next(table)) {
      while (left >= kWordGroups) {
        if (sums.room < kWordGroups) sums.flush();
        const int64_t most = left < sums.room ? left : sums.room;
        const int64_t count = most / kWordGroups;
        for (int64_t i = 0; i < count; ++i) {
          load<F>(index, words);
          BITPRESS_UNROLL
          for (int g = 0; g < kWordGroups; ++g)
            sums.look_up(index, table + g * kGroupBytes, pixel_bytes);
          words += tile.pitch;
          table += kWordGroups * kGroupBytes;
        }
        left -= count * kWordGroups;
        sums.room -= count * kWordGroups;
      }
      if (left > 0) {
        if (sums.room < left) sums.flush();
        sums.room -= left;
        load<F>(index, words);
        for (; left > 0; --left, table += kGroupBytes) sums.look_up(index, table, pixel_bytes);
        words += tile.pitch;
      }
    }
    sums.flush();
  }
};

}  // namespace

constexpr ProductKernel kAvx512LookupF32 = {
    "lookup_f32", BP_F32,  true, kGroupChannels, kGroupBytes, kWordGroups, 32, kLanes, 4, false,
    prepare,      nullptr, 0,    multiply_in_tiles<Block>,
    true};

}  // namespace bitpress
