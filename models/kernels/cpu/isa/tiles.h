// Cuts one call of multiply into tiles: chunks of groups whose weights stay in the first-level
// cache for all pixels, and in each the pixels and filters whose sums fit the registers.
//
// Sums of float32 are added up on two levels: those of kFloatChunk groups begin at 0 in registers,
// and are then added to what is in memory. In one long chain, the rounding errors of equal numbers
// all point the same way and grow with its length. In two, and with the pieces that product.cpp
// cuts, 25,088 equal numbers are within 4e-6 of their sum, and 90,000 within 1e-5. Chunks begin
// anew with each call, at the window's first group, so that no sum depends on pixels or filters
// beside it.
//
// Included by source files of several instruction sets, with internal linkage.
#pragma once
#include "../kernel_set.h"

namespace bitpress {
namespace {

#define BITPRESS_UNROLL _Pragma("GCC unroll 16")

constexpr int64_t kFloatChunk = 96;     // a multiple of every kernel's word_groups
constexpr int64_t kWhole = INT64_MAX;  // a chunk that is never full

// Sums of some pixels and filters over `count` groups from group `group` of segment `segment` on.
struct Tile {
  const Window* window;
  int64_t first_byte;  // of the tile's first pixel, within a row
  int64_t segment, group, count;
  const uint8_t* weights;  // of the first group and filter
  int64_t pitch;           // bytes of weights from one word of groups to the next
  void* sums;
  int64_t sums_pitch;
  bool accumulate;
};

// Goes through a tile's groups, run by run of those that lie without a gap in memory.
class Runs {
 public:
  Runs(const Tile& tile, int group_bytes)
      : window_(*tile.window),
        first_byte_(tile.first_byte),
        group_bytes_(group_bytes),
        segment_(tile.segment),
        group_(tile.group),
        left_(tile.count) {}

  // The number of groups of the next run, 0 at the end; its first group for the first pixel.
  int64_t next(const uint8_t*& prepared) {
    if (left_ == 0) return 0;
    const int64_t here = window_.groups - group_;
    const int64_t count = here < left_ ? here : left_;
    prepared = window_.rows[segment_] + first_byte_ + group_ * group_bytes_;
    left_ -= count;
    ++segment_;
    group_ = 0;
    return count;
  }

 private:
  const Window& window_;
  int64_t first_byte_;
  int group_bytes_;
  int64_t segment_, group_, left_;
};

template <class Block, int F, int P = 1>
inline void run_tile(int pixels, const Tile& tile) {
  if constexpr (P < Block::most_pixels(F)) {
    if (pixels > P) return run_tile<Block, F, P + 1>(pixels, tile);
  }
  Block::template run<P, F>(tile);
}

// Tiles of nearly equal size: a single pixel has few sums to overlap.
template <class Block, int F>
void run_pixels(int pixels, Tile tile) {
  constexpr int kMost = Block::most_pixels(F);
  for (int tiles = (pixels + kMost - 1) / kMost; tiles > 0; --tiles) {
    const int n = (pixels + tiles - 1) / tiles;
    run_tile<Block, F>(n, tile);
    pixels -= n;
    tile.first_byte += n * tile.window->pixel_bytes;
    tile.sums = static_cast<typename Block::Sum*>(tile.sums) + n * tile.sums_pitch;
  }
}

template <class Block, int F = 1>
inline void run_vectors(int vectors, int pixels, const Tile& tile) {
  if constexpr (F < Block::kMostVectors) {
    if (vectors > F) return run_vectors<Block, F + 1>(vectors, pixels, tile);
  }
  run_pixels<Block, F>(pixels, tile);
}

// ProductKernel::multiply for a Block that has
//   Sum                    int32_t or float
//   kLanes, kVectorBytes   filters of a vector, and bytes of their weights for one word
//   kChunk                 groups at a time; kWhole where a word has several groups
//   kMostVectors           vectors of filters at a time, and fewer for some numbers of pixels:
//   most_vectors(pixels)
//   most_pixels(F)         pixels whose sums fit the registers beside F vectors of filters
//   run<P, F>(tile)        sums of P pixels for F vectors
template <class Block>
void multiply_in_tiles(const Window& window, const void* weights, int vectors, int pixels,
                       void* sums, int64_t sums_pitch, bool accumulate) {
  int64_t left = window.segments * window.groups;
  const int most = Block::most_vectors(pixels);
  Tile tile{&window, window.first_byte, 0, 0, 0, static_cast<const uint8_t*>(weights),
            int64_t{vectors} * Block::kVectorBytes, sums, sums_pitch, accumulate};
  for (;;) {
    tile.count = left < Block::kChunk ? left : Block::kChunk;
    Tile part = tile;
    for (int v = 0; v < vectors;) {
      const int n = vectors - v < most ? vectors - v : most;
      run_vectors<Block>(n, pixels, part);
      part.weights += n * Block::kVectorBytes;
      part.sums = static_cast<typename Block::Sum*>(part.sums) + n * Block::kLanes;
      v += n;
    }
    left -= tile.count;
    if (left == 0) return;
    tile.weights += tile.count * tile.pitch;
    tile.group += tile.count;
    tile.segment += tile.group / window.groups;
    tile.group %= window.groups;
    tile.accumulate = true;
  }
}

}  // namespace
}  // namespace bitpress
