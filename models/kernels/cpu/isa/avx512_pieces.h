// Cuts the pixels of one call of multiply into pieces that fit the registers.
#pragma once
#include "../kernel_set.h"

namespace bitpress {
namespace {

// What one piece is to do: sums of its pixels for some vectors of filters.
struct Piece {
  const Window* window;
  int64_t first_byte;  // of the piece's first pixel, within a row
  const void* weights;
  void* sums;
  int64_t sums_pitch;
  bool accumulate;
};

template <class Block, int F, int P = 1>
inline void run_piece(int pixels, const Piece& piece) {
  if constexpr (P < Block::most_pixels(F)) {
    if (pixels > P) return run_piece<Block, F, P + 1>(pixels, piece);
  }
  Block::template run<P, F>(piece);
}

// Pieces of nearly equal size: one pixel left alone would load all weights for itself.
template <class Block, int F>
inline void run_pieces(int pixels, Piece piece) {
  const int64_t pixel_bytes = piece.window->pixel_bytes;
  constexpr int kMost = Block::most_pixels(F);
  for (int pieces = (pixels + kMost - 1) / kMost; pieces > 0; --pieces) {
    const int n = (pixels + pieces - 1) / pieces;
    run_piece<Block, F>(n, piece);
    pixels -= n;
    piece.first_byte += n * pixel_bytes;
    piece.sums = static_cast<typename Block::Sum*>(piece.sums) + n * piece.sums_pitch;
  }
}

// ProductKernel::multiply for a Block that has
//   using Sum               int32_t or float
//   most_pixels(F)          that fit the registers beside F vectors of filters
//   run<P, F>(piece)        sums of P pixels for F vectors of filters
template <class Block>
void multiply_in_pieces(const Window& window, const void* weights, int vectors, int pixels,
                        void* sums, int64_t sums_pitch, bool accumulate) {
  const Piece piece{&window, window.first_byte, weights, sums, sums_pitch, accumulate};
  switch (vectors) {
    case 1: return run_pieces<Block, 1>(pixels, piece);
    case 2: return run_pieces<Block, 2>(pixels, piece);
    case 3: return run_pieces<Block, 3>(pixels, piece);
    default: return run_pieces<Block, 4>(pixels, piece);
  }
}

}  // namespace
}  // namespace bitpress
