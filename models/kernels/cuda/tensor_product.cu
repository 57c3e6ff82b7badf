// Signs times bits on tensor cores, which count the bits that two rows of 256 have in common.
//
// With signs and weights of -1 and +1 as bits x and w, and |x| the bits set in x,
//
//     sum of signs times weights = 4 |w & x| - 2 |x| - sum of weights
//
// where all three are over the taps inside of the map: outside of it x is 0, and what the weights
// there sum up to comes from a table. (Counting the bits that differ would need no |x|, but tensor
// cores since Hopper make it of two counts of common bits.) |x| is itself such a count, of bits in
// common with a filter of ones: one more column for each warp, where popcounts of what a lane holds
// would take four times as long as the product with eight filters.
//
// The output is a matrix of pixels by filters, its sums run over taps and the words of a tap. A
// block makes TILE_PIXELS by TILE_FILTERS of it: PIXEL_WARPS by FILTER_WARPS warps share the tile,
// and SUM_WARPS of them each 256 bits at a time of a stage. While one stage of STAGE_WORDS is
// computed with, the copies of the next STAGES - 1 are on their way.
//
// Taps must be whole words of the map: there is one group, or GROUP_CHANNELS and GROUP_FILTERS are
// multiples of 32.

constexpr int THREADS = PIXEL_WARPS * FILTER_WARPS * SUM_WARPS * 32;
constexpr int WARP_PIXELS = TILE_PIXELS / PIXEL_WARPS;
constexpr int WARP_FILTERS = TILE_FILTERS / FILTER_WARPS;
constexpr int ROWS = WARP_PIXELS / 16;     // products of 16 pixels
constexpr int COLUMNS = WARP_FILTERS / 8;  // by 8 filters
static_assert(ROWS * 16 * PIXEL_WARPS == TILE_PIXELS, "a warp takes 16 pixels at a time");
static_assert(COLUMNS % 4 == 0 && COLUMNS * 8 * FILTER_WARPS == TILE_FILTERS,
              "a warp makes whole words of signs");
static_assert(STAGE_WORDS % (8 * SUM_WARPS) == 0, "a warp takes 256 bits at a time");

// Four words more than a row has: eight rows of four words then lie in different banks.
constexpr int ROW_WORDS = STAGE_WORDS + 4;
constexpr int STAGE_SIZE = (TILE_PIXELS + TILE_FILTERS) * ROW_WORDS;

constexpr int kOutside = -(1 << 30);  // the row of a window that reads nothing

struct Sums {
  int common[ROWS][COLUMNS][4];  // |w & x|
  int ones[ROWS][4];             // |x|, the same for all columns
};

struct Tile {
  int first_pixel, pixels;     // of all images
  int group, first_filter;     // in the group
  int pixel_warp, filter_warp, sum_warp;

  DEVICE int warp_pixel() const { return pixel_warp * WARP_PIXELS; }
  DEVICE int warp_filter() const { return filter_warp * WARP_FILTERS; }
};

DEVICE Tile tile_of(int pixels) {
  const int warp = warp_number();
  return {block_x() * TILE_PIXELS,
          pixels,
          block_z(),
          block_y() * TILE_FILTERS,
          warp % PIXEL_WARPS,
          warp / PIXEL_WARPS % FILTER_WARPS,
          warp / (PIXEL_WARPS * FILTER_WARPS)};
}

DEVICE void find_windows(Window* windows, const Tile& tile) {
  for (int i = thread_number(); i < TILE_PIXELS; i += THREADS) {
    const int pixel = tile.first_pixel + i;
    windows[i] = pixel < tile.pixels ? window_of(pixel) : Window{0, kOutside, kOutside};
  }
}

// The stages that the words of one basis take.
DEVICE int basis_stages() { return (TAPS * TAP_WORDS + STAGE_WORDS - 1) / STAGE_WORDS; }

// Begins to copy a stage: the pixels' words, zeros outside of the map, then those of the filters.
DEVICE void begin_stage(Word* stage, int number, const Word* x, const Word* weights,
                        const Window* windows, const Tile& tile) {
  const int filter_words = TAPS * TAP_WORDS;
  const int row_copies = STAGE_WORDS / COPY_WORDS;
  const int basis = number / basis_stages();
  const int first_word = number % basis_stages() * STAGE_WORDS;
  for (int i = thread_number(); i < TILE_PIXELS * row_copies; i += THREADS) {
    const int row = i / row_copies, word = i % row_copies * COPY_WORDS;
    const int tap = (first_word + word) / TAP_WORDS;
    const int tap_word = (first_word + word) % TAP_WORDS;
    const Window window = windows[row];
    const int y = window.row + tap / KERNEL_COLUMNS * DILATION_ROWS;
    const int column = window.column + tap % KERNEL_COLUMNS * DILATION_COLUMNS;
    const bool inside = tap < TAPS && y >= 0 && y < IN_ROWS && column >= 0 && column < IN_COLUMNS;
    const Size pixel = (static_cast<Size>(window.image) * IN_ROWS + y) * IN_COLUMNS + column;
    const Size place = inside ? pixel * IN_WORDS + tile.group * TAP_WORDS + tap_word : 0;
    begin_copy(stage + row * ROW_WORDS + word, x + place, COPY_WORDS, inside);
  }
  Word* filters = stage + TILE_PIXELS * ROW_WORDS;
  for (int i = thread_number(); i < TILE_FILTERS * row_copies; i += THREADS) {
    const int row = i / row_copies, word = i % row_copies * COPY_WORDS;
    const int filter = tile.first_filter + row;
    const bool there = filter < GROUP_FILTERS && first_word + word < filter_words;
    const Size line = static_cast<Size>(basis) * FILTERS + tile.group * GROUP_FILTERS + filter;
    const Size place = there ? line * filter_words + first_word + word : 0;
    begin_copy(filters + row * ROW_WORDS + word, weights + place, COPY_WORDS, there);
  }
}

// Adds to a warp's sums what a stage holds for it.
DEVICE void add_stage(Sums& sums, const Word* stage, const Tile& tile) {
  const int lane = lane_number();
  const Word* pixels = stage + (tile.warp_pixel() + lane % 16) * ROW_WORDS + lane / 16 * 4;
  const Word* filters = stage + (TILE_PIXELS + tile.warp_filter()) * ROW_WORDS +
                        (lane / 16 * 8 + lane % 8) * ROW_WORDS + lane / 8 % 2 * 4;
#pragma unroll
  for (int part = 0; part < STAGE_WORDS / 8; part += SUM_WARPS) {
    const int word = (part + tile.sum_warp) * 8;
    Word a[ROWS][4];
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      read_matrices(a[row], pixels + row * 16 * ROW_WORDS + word);
      count_common_bits(sums.ones[row], a[row], 0xffffffffu, 0xffffffffu);
    }
#pragma unroll
    for (int column = 0; column < COLUMNS; column += 2) {
      Word b[4];  // two words each of two columns
      read_matrices(b, filters + column * 8 * ROW_WORDS + word);
#pragma unroll
      for (int row = 0; row < ROWS; ++row) {
        count_common_bits(sums.common[row][column], a[row], b[0], b[1]);
        count_common_bits(sums.common[row][column + 1], a[row], b[2], b[3]);
      }
    }
  }
}

// Adds the sums of the warps that share a part of the tile, each of which has some of the bits; the
// first of them has them all then.
DEVICE void join_sums(Sums& sums, int* exchange, const Tile& tile) {
  constexpr int each = sizeof(Sums) / sizeof(int);
  constexpr int part_warps = PIXEL_WARPS * FILTER_WARPS;
  const int part = tile.pixel_warp + tile.filter_warp * PIXEL_WARPS;
  int* numbers = &sums.common[0][0][0];
  int* place = exchange + part * each * 32 + lane_number();
  wait_for_block();  // what was exchanged before has been read
  if (tile.sum_warp > 0) {
    int* mine = place + (tile.sum_warp - 1) * part_warps * each * 32;
#pragma unroll
    for (int i = 0; i < each; ++i) mine[i * 32] = numbers[i];
  }
  wait_for_block();
  if (tile.sum_warp == 0) {
    for (int other = 0; other < SUM_WARPS - 1; ++other) {
#pragma unroll
      for (int i = 0; i < each; ++i) numbers[i] += place[(other * part_warps * each + i) * 32];
    }
  }
}

// How many taps of a row or column lie before position 0 and before position `length`.
struct Span {
  int first, end;
};

DEVICE int taps_before(int position, int start, int dilation, int taps) {
  const int distance = position - start;
  if (distance <= 0) return 0;
  const int before = (distance + dilation - 1) / dilation;
  return before < taps ? before : taps;
}

DEVICE Span taps_inside(int start, int length, int dilation, int taps) {
  return {taps_before(0, start, dilation, taps), taps_before(length, start, dilation, taps)};
}

// Sums of weights over rectangles of taps from the first one on: (BASES, KERNEL_ROWS + 1,
// KERNEL_COLUMNS + 1, FILTERS), 0 where a side is 0.
struct Border {
  Span rows, columns;

  DEVICE explicit Border(const Window& window)
      : rows(taps_inside(window.row, IN_ROWS, DILATION_ROWS, KERNEL_ROWS)),
        columns(taps_inside(window.column, IN_COLUMNS, DILATION_COLUMNS, KERNEL_COLUMNS)) {}

  // The sum of weights times the border's signs, less that of the weights inside.
  DEVICE int sum(const int* tap_sums, int filter) const {
    int inside = at(tap_sums, rows.end, columns.end, filter);
    if (rows.first > 0 || columns.first > 0) {  // else the others are 0
      inside -= at(tap_sums, rows.first, columns.end, filter);
      inside -= at(tap_sums, rows.end, columns.first, filter);
      inside += at(tap_sums, rows.first, columns.first, filter);
    }
    if (!PADDING_OF_ONES) return -inside;
    return at(tap_sums, KERNEL_ROWS, KERNEL_COLUMNS, filter) - 2 * inside;
  }

  DEVICE static int at(const int* tap_sums, int row, int column, int filter) {
    return tap_sums[(row * (KERNEL_COLUMNS + 1) + column) * FILTERS + filter];
  }
};

// A lane holds, of every 16 pixels by 8 filters, these pixels and filters as numbers 0 to 3.
DEVICE int held_pixel(int i) { return lane_number() / 4 + i / 2 * 8; }
DEVICE int held_filter(int i) { return lane_number() % 4 * 2 + i % 2; }

using Products = float[ROWS][COLUMNS][4];

// Adds a basis to the products of the filters that a lane holds.
DEVICE void add_basis(Products& products, const Sums& sums, int basis, const int* tap_sums,
                      const Window* windows, const Tile& tile, const Finishing& finishing) {
  const int* table = tap_sums + Size{basis} * (KERNEL_ROWS + 1) * (KERNEL_COLUMNS + 1) * FILTERS;
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Border border(windows[tile.warp_pixel() + row * 16 + held_pixel(half * 2)]);
      const int twice_ones = 2 * sums.ones[row][half * 2];
#pragma unroll
      for (int column = 0; column < COLUMNS; ++column) {
#pragma unroll
        for (int i = half * 2; i < half * 2 + 2; ++i) {
          const int filter = tile.first_filter + tile.warp_filter() + column * 8 + held_filter(i);
          if (filter >= GROUP_FILTERS) continue;
          const int channel = tile.group * GROUP_FILTERS + filter;
          const int sum =
              4 * sums.common[row][column][i] - twice_ones + border.sum(table, channel);
          products[row][column][i] =
              with_basis(products[row][column][i], sum, basis, channel, finishing);
        }
      }
    }
  }
}

// Keeps the results of a lane's filters, from the first of a row's word on, at one pixel.
DEVICE void keep_numbers(const float (&products)[COLUMNS][4], int half, int pixel,
                         const Tile& tile, const Finishing& finishing) {
#pragma unroll
  for (int column = 0; column < COLUMNS; ++column) {
    const int filter = tile.first_filter + tile.warp_filter() + column * 8 + held_filter(0);
    const int channel = tile.group * GROUP_FILTERS + filter;
    if (filter >= GROUP_FILTERS) continue;
    const float y0 = finished(products[column][half * 2], channel, pixel, finishing);
    if (filter + 1 >= GROUP_FILTERS) {
      keep(y0, channel, pixel, finishing);
      continue;
    }
    const float y1 = finished(products[column][half * 2 + 1], channel + 1, pixel, finishing);
    if (FILTERS % 2 == 0) {
      keep_two(y0, y1, channel, pixel, finishing);
    } else {
      keep(y0, channel, pixel, finishing);
      keep(y1, channel + 1, pixel, finishing);
    }
  }
}

// Keeps signs: four lanes have the bits of a word together. All lanes of a warp take part, also
// those without a pixel.
DEVICE void keep_signs(const float (&products)[COLUMNS][4], int half, int pixel, const Tile& tile,
                       const Finishing& finishing) {
  const bool there = pixel < tile.pixels;
#pragma unroll
  for (int word = 0; word < COLUMNS / 4; ++word) {
    const int first = tile.first_filter + tile.warp_filter() + word * 32;
    Word bits = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int number = half * 2 + i % 2, bit = i / 2 * 8 + held_filter(number);
      const int channel = tile.group * GROUP_FILTERS + first + bit;
      if (!there || first + bit >= GROUP_FILTERS) continue;
      const float y = finished(products[word * 4 + i / 2][number], channel, pixel, finishing);
      if (is_positive(y, channel, finishing)) bits |= Word{1} << bit;
    }
    bits = joined_by_four(bits);
    if (there && first < GROUP_FILTERS && lane_number() % 4 == 0) {
      const int out_word = (tile.group * GROUP_FILTERS + first) / 32;
      static_cast<Word*>(finishing.out)[Size{pixel} * OUT_WORDS + out_word] = bits;
    }
  }
}

DEVICE void keep_products(const Products& products, const Tile& tile,
                          const Finishing& finishing) {
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pixel =
          tile.first_pixel + tile.warp_pixel() + row * 16 + held_pixel(half * 2);
      if (KEPT == kB1) {
        keep_signs(products[row], half, pixel, tile, finishing);
      } else if (pixel < tile.pixels) {
        keep_numbers(products[row], half, pixel, tile, finishing);
      }
    }
  }
}

KERNEL(THREADS) tensor_product(const Word* x, const Word* weights, const int* tap_sums,
                               const float* base_scale, const float* affine, const float* slope,
                               const float* threshold, const void* residual, void* out,
                               int pixels) {
  constexpr int exchanged =
      (SUM_WARPS - 1) * PIXEL_WARPS * FILTER_WARPS * 32 * (sizeof(Sums) / sizeof(int));
  SHARED(Word, stages, STAGES * STAGE_SIZE);
  SHARED(Window, windows, TILE_PIXELS);
  SHARED(int, exchange, exchanged > 0 ? exchanged : 1);
  const Finishing finishing{base_scale, affine, slope, threshold, residual, out};
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
      add_stage(sums, stages + i % STAGES * STAGE_SIZE, tile);
    }
    if (SUM_WARPS > 1) join_sums(sums, exchange, tile);
    if (tile.sum_warp == 0) {
      add_basis(products, sums, basis, tap_sums, windows, tile, finishing);
    }
  }
  if (tile.sum_warp == 0) keep_products(products, tile, finishing);
}
