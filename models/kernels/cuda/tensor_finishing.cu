// From counts of common bits to what is kept, as tensor cores spread them over the lanes of a warp.

// Whether every filter with an even number in its group has one beside it, at a multiple of two.
#define PAIRS (FILTERS % 2 == 0 && GROUP_FILTERS % 2 == 0)

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
