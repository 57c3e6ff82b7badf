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
// Where a filter's words are no multiple of 256 bits, nothing is computed with what would follow.
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
static_assert(THREADS % STAGE_WORDS == 0, "a thread copies the same words of several rows");

// Four words more than a row has: eight rows of four words then lie in different banks.
constexpr int ROW_WORDS = STAGE_WORDS + 4;
constexpr int STAGE_SIZE = (TILE_PIXELS + TILE_FILTERS) * ROW_WORDS;

// Whether every filter with an even number in its group has one beside it, at a multiple of two.
#define PAIRS (FILTERS % 2 == 0 && GROUP_FILTERS % 2 == 0)

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
    windows[i] = pixel < tile.pixels ? window_of(pixel) : Window{kOutside, kOutside, 0};
  }
}

DEVICE int filter_words() { return TAPS * TAP_WORDS; }
// The stages that the words of one basis take.
DEVICE int basis_stages() { return (filter_words() + STAGE_WORDS - 1) / STAGE_WORDS; }

// A stage of all bases, and where its words stand in a filter.
struct Stage {
  int basis, first_word;

  DEVICE explicit Stage(int number)
      : basis(number / basis_stages()), first_word(number % basis_stages() * STAGE_WORDS) {}

  // Whether anything is computed with this word of the stage and the others of its 256 bits.
  DEVICE bool holds(int word) const { return first_word + word / 8 * 8 < filter_words(); }
};

// Begins to copy a stage: the pixels' words, zeros outside of the map, then those of the filters.
DEVICE void begin_stage(Word* stage, int number, const Word* x, const Word* weights,
                        const Window* windows, const Tile& tile) {
  const Stage where(number);
  // A thread copies the same words of several rows.
  const int row_copies = STAGE_WORDS / COPY_WORDS, rows = THREADS / row_copies;
  const int word = thread_number() % row_copies * COPY_WORDS;
  const int first_row = thread_number() / row_copies;
  if (!where.holds(word)) return;
  const int filter_word = where.first_word + word;
  const bool is_word = filter_word < filter_words();
  const Tap tap(filter_word / TAP_WORDS);
  const Word* channels = x + tile.group * TAP_WORDS + filter_word % TAP_WORDS;
  Word* target = stage + word;
#pragma unroll
  for (int row = first_row; row < TILE_PIXELS; row += rows) {
    const bool inside = is_word && tap.is_inside(windows[row]);
    const Size pixel = inside ? tap.pixel(windows[row]) : 0;
    begin_copy(target + row * ROW_WORDS, channels + pixel * IN_WORDS, COPY_WORDS, inside);
  }
  target += TILE_PIXELS * ROW_WORDS;
  const int first_line = where.basis * FILTERS + tile.group * GROUP_FILTERS + tile.first_filter;
#pragma unroll
  for (int row = first_row; row < TILE_FILTERS; row += rows) {
    const bool there = is_word && tile.first_filter + row < GROUP_FILTERS;
    const Size line = there ? first_line + row : 0;
    begin_copy(target + row * ROW_WORDS, weights + line * filter_words() + filter_word, COPY_WORDS,
               there);
  }
}

// Adds to a warp's sums what a stage holds for it.
DEVICE void add_stage(Sums& sums, const Word* stage, int number, const Tile& tile) {
  const Stage where(number);
  const int lane = lane_number();
  const Word* pixels = stage + (tile.warp_pixel() + lane % 16) * ROW_WORDS + lane / 16 * 4;
  const Word* filters = stage + (TILE_PIXELS + tile.warp_filter()) * ROW_WORDS +
                        (lane / 16 * 8 + lane % 8) * ROW_WORDS + lane / 8 % 2 * 4;
#pragma unroll
  for (int part = 0; part < STAGE_WORDS / 8; part += SUM_WARPS) {
    const int word = (part + tile.sum_warp) * 8;
    if (!where.holds(word)) break;
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

// The filters of a lane's part of a column: two that lie next to each other.
struct Pair {
  int channel;  // of the first, among all groups
  bool first, second;  // whether they are there

  DEVICE Pair(const Tile& tile, int column) {
    const int filter = tile.first_filter + tile.warp_filter() + column * 8 + lane_number() % 4 * 2;
    first = filter < GROUP_FILTERS;
    second = filter + 1 < GROUP_FILTERS;
    channel = first ? tile.group * GROUP_FILTERS + filter : 0;
  }
  // Its second filter, or the first one again where there is no second.
  DEVICE int other() const { return second ? channel + 1 : channel; }
};

struct alignas(8) TwoSums {
  int first, second;
};

// The sums of weights over the taps inside of the map, for the window of one pixel. The table has
// sums over rectangles of taps from the first one on, (KERNEL_ROWS + 1, KERNEL_COLUMNS + 1,
// FILTERS), 0 where a side is 0.
struct TapSums {
  const int* table;
  Span rows, columns;

  DEVICE TapSums(const int* table, const Window& window)
      : table(table),
        rows(taps_inside(window.row, IN_ROWS, DILATION_ROWS, KERNEL_ROWS)),
        columns(taps_inside(window.column, IN_COLUMNS, DILATION_COLUMNS, KERNEL_COLUMNS)) {}

  // Whether nothing lies before the map's beginning.
  DEVICE bool begins_inside() const { return rows.first == 0 && columns.first == 0; }

  // What lies before the end of the map, and what of that lies before its beginning.
  DEVICE TwoSums before_end(const Pair& pair) const { return at(rows.end, columns.end, pair); }
  DEVICE TwoSums before_begin(const Pair& pair) const {
    const TwoSums above = at(rows.first, columns.end, pair);
    const TwoSums beside = at(rows.end, columns.first, pair);
    const TwoSums both = at(rows.first, columns.first, pair);
    return {above.first + beside.first - both.first, above.second + beside.second - both.second};
  }
  DEVICE TwoSums of_all(const Pair& pair) const { return at(KERNEL_ROWS, KERNEL_COLUMNS, pair); }

  DEVICE TwoSums at(int row, int column, const Pair& pair) const {
    const int* place = table + (row * (KERNEL_COLUMNS + 1) + column) * FILTERS;
    if (PAIRS) {
      return *reinterpret_cast<const TwoSums*>(place + pair.channel);
    }
    return {place[pair.channel], place[pair.other()]};
  }
};

// Makes sums of signs times weights of the counts for one pixel, two for each column: a lane's
// numbers `half * 2` and the one after it.
DEVICE void weigh(int (&common)[COLUMNS][4], int half, int ones, const TapSums& tap_sums,
                  const Tile& tile) {
  // A border of ones adds the weights that meet it: all of them less those inside.
  const int share = PADDING_OF_ONES ? 2 : 1;
#pragma unroll
  for (int column = 0; column < COLUMNS; ++column) {
    const Pair pair(tile, column);
    const TwoSums inside = tap_sums.before_end(pair);
    const TwoSums all = PADDING_OF_ONES ? tap_sums.of_all(pair) : TwoSums{0, 0};
    int* sum = common[column] + half * 2;
    sum[0] = 4 * sum[0] - 2 * ones - share * inside.first + all.first;
    sum[1] = 4 * sum[1] - 2 * ones - share * inside.second + all.second;
  }
  if (tap_sums.begins_inside()) return;
#pragma unroll
  for (int column = 0; column < COLUMNS; ++column) {
    const TwoSums outside = tap_sums.before_begin(Pair(tile, column));
    common[column][half * 2] += share * outside.first;
    common[column][half * 2 + 1] += share * outside.second;
  }
}

// The number of a pixel in a warp's tile: a lane holds pixels of both halves of each row of 16.
DEVICE int held_pixel(const Tile& tile, int row, int half) {
  return tile.warp_pixel() + row * 16 + half * 8 + lane_number() / 4;
}

using Products = float[ROWS][COLUMNS][4];

// Adds a basis to the products of the filters that a lane holds.
DEVICE void add_basis(Products& products, Sums& sums, int basis, const int* tap_sums,
                      const Window* windows, const Tile& tile, const Finishing& finishing) {
  const int rectangles = (KERNEL_ROWS + 1) * (KERNEL_COLUMNS + 1);
  const int* table = tap_sums + Size{basis} * rectangles * FILTERS;
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const TapSums pixel_sums(table, windows[held_pixel(tile, row, half)]);
      weigh(sums.common[row], half, sums.ones[row][half * 2], pixel_sums, tile);
    }
  }
#pragma unroll
  for (int column = 0; column < COLUMNS; ++column) {
    const Pair pair(tile, column);
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int channel = i % 2 ? pair.other() : pair.channel;
        float& product = products[row][column][i];
        product = with_basis(product, sums.common[row][column][i], basis, channel, finishing);
      }
    }
  }
}

// Keeps the numbers of a pair of filters at one pixel, of which at least the first is there.
DEVICE void keep_pair(float2 y, const Pair& pair, int pixel, const Finishing& finishing) {
  if (PAIRS) {
    keep_two(y.x, y.y, pair.channel, pixel, finishing);
    return;
  }
  keep(y.x, pair.channel, pixel, finishing);
  if (pair.second) keep(y.y, pair.channel + 1, pixel, finishing);
}

DEVICE float2 residuals_of(const Pair& pair, int pixel, const Finishing& finishing) {
  if (PAIRS) return residuals_of(pair.channel, pixel, finishing);
  return {residual_of(pair.channel, pixel, finishing), residual_of(pair.other(), pixel, finishing)};
}

// Keeps words of signs of which each of four lanes has some bits. All lanes of a warp take part.
DEVICE void keep_words(const Word (&words)[ROWS][2][COLUMNS / 4], const Tile& tile,
                       const Finishing& finishing) {
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pixel = tile.first_pixel + held_pixel(tile, row, half);
#pragma unroll
      for (int word = 0; word < COLUMNS / 4; ++word) {
        const Word bits = joined_by_four(words[row][half][word]);
        const int filter = tile.first_filter + tile.warp_filter() + word * 32;
        if (lane_number() % 4 > 0 || pixel >= tile.pixels || filter >= GROUP_FILTERS) continue;
        const int place = (tile.group * GROUP_FILTERS + filter) / 32;
        static_cast<Word*>(finishing.out)[Size{pixel} * OUT_WORDS + place] = bits;
      }
    }
  }
}

// Finishes and keeps what a warp's lanes hold, filter by filter.
DEVICE void keep_products(const Products& products, const Tile& tile, const Finishing& finishing) {
  Word words[ROWS][2][COLUMNS / 4] = {};
#pragma unroll
  for (int column = 0; column < COLUMNS; ++column) {
    const Pair pair(tile, column);
    if (!pair.first) continue;
    const FilterNumbers first(pair.channel, finishing), second(pair.other(), finishing);
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pixel = tile.first_pixel + held_pixel(tile, row, half);
        if (pixel >= tile.pixels) continue;
        const float* product = products[row][column] + half * 2;
        const float2 residuals = residuals_of(pair, pixel, finishing);
        const float2 y{finished(product[0], residuals.x, first),
                       finished(product[1], residuals.y, second)};
        if (KEPT != kB1) {
          keep_pair(y, pair, pixel, finishing);
          continue;
        }
        const Word bits = Word{is_positive(y.x, first)} |
                          Word{pair.second && is_positive(y.y, second)} << 1;
        words[row][half][column / 4] |= bits << (column % 4 * 8 + lane_number() % 4 * 2);
      }
    }
  }
  if (KEPT == kB1) keep_words(words, tile, finishing);
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
      add_stage(sums, stages + i % STAGES * STAGE_SIZE, i, tile);
    }
    if (SUM_WARPS > 1) join_sums(sums, exchange, tile);
    if (tile.sum_warp == 0) {
      add_basis(products, sums, basis, tap_sums, windows, tile, finishing);
    }
  }
  if (tile.sum_warp == 0) keep_products(products, tile, finishing);
}
