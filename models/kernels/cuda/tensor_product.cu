// Signs times bits on tensor cores, which count the bits that two rows of 256 have in common.
//
// With signs and weights of -1 and +1 as bits x and w, and |x| the bits set in x,
//
//     sum of signs times weights = 4 |w & x| - 2 |x| - sum of weights
//
// where all three are over the taps inside of the map: outside of it x is 0, and what the weights
// there sum up to comes from a table. (Counting the bits that differ would need no |x|, but tensor
// cores since Hopper make it of two counts of common bits.) |x| is itself such a count, of bits in
// common with a filter of ones: one more column for each warp. Popcounts would be as many for each
// lane as it holds words, of which a multiprocessor counts but 16 in a cycle.

KERNEL(THREADS) tensor_product(const Word* x, const Word* weights, const int* tap_sums,
                               const float* base_scale, const float* affine, const float* slope,
                               const float* threshold, const void* residual, void* out,
                               signed char* levels, int pixels) {
  constexpr int exchanged =
      (SUM_WARPS - 1) * PIXEL_WARPS * FILTER_WARPS * 32 * (sizeof(Sums) / sizeof(int));
  SHARED(Word, stages, STAGES * STAGE_SIZE);
  SHARED(Window, windows, TILE_PIXELS);
  SHARED(int, exchange, exchanged > 0 ? exchanged : 1);
  const Finishing finishing{base_scale, affine, slope, threshold, residual, out, levels};
  const Tile tile = tile_of(pixels);
  find_windows(windows, tile);
  wait_for_block();

  const int count = BASES * basis_stages();
  for (int i = 0; i < STAGES - 1; ++i) {
    if (i < count) begin_stage(stages + i * STAGE_SIZE, i, x, weights, windows, tile);
    end_copy_group();
  }
  Products products{};
  for (int basis = 0; basis < BASES; ++basis) {
    Sums sums{};
#pragma unroll 1
    for (int i = basis * basis_stages(); i < (basis + 1) * basis_stages(); ++i) {
      wait_for_copies<STAGES - 2>();
      wait_for_block();  // all have stage i, and nobody computes with the one before it any more
      const int next = i + STAGES - 1;
      if (next < count) {
        begin_stage(stages + next % STAGES * STAGE_SIZE, next, x, weights, windows, tile);
      }
      end_copy_group();
      add_stage(sums, stages + i % STAGES * STAGE_SIZE, i, tile);
    }
    if (SUM_WARPS > 1) join_sums(sums, exchange, tile);
    if (tile.sum_warp == 0) {
      add_basis(products, sums, basis, tap_sums, windows, tile, finishing);
    }
  }
  if (tile.sum_warp == 0) keep_products(products, tile, finishing);
}
