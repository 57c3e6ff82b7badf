// How many bits signs and weights have in common, counted on tensor cores.
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
