// Signs times bits with ordinary instructions: for machines whose tensor cores know no bits, and
// for groups whose channels or filters are not whole words.
//
// Each lane of a warp has a filter, and all of them the same LANE_PIXELS pixels. Signs and weights
// that differ count -1, those that agree +1; bits past the last channel are masked.

constexpr int THREADS = 128;
constexpr int LANE_PIXELS = 4;
constexpr int BLOCK_PIXELS = THREADS / 32 * LANE_PIXELS;

// The bits of word `word` of a tap that stand for channels.
DEVICE Word channel_mask(int word) {
  const int rest = GROUP_CHANNELS - word * 32;
  return rest >= 32 ? 0xffffffffu : (Word{1} << rest) - 1;
}

// Word `word` of a group's channels at a pixel; its bits past the last channel are of no account.
DEVICE Word signs_of(const Word* pixel, int group, int word) {
  const int channel = group * GROUP_CHANNELS + word * 32;
  const int first = channel / 32, shift = channel % 32;
  Word signs = pixel[first] >> shift;
  if (shift > 0 && first + 1 < IN_WORDS) signs |= pixel[first + 1] << (32 - shift);
  return signs;
}

// Adds one tap of a basis to the sums of a filter, a pixel each.
DEVICE void add_tap(int (&sums)[LANE_PIXELS], const Word* x, const Word* tap_weights,
                    const Tap& tap, int group, const Window (&windows)[LANE_PIXELS]) {
  const Word* pixels[LANE_PIXELS];
#pragma unroll
  for (int i = 0; i < LANE_PIXELS; ++i) {
    const Size pixel = tap.pixel(windows[i]);
    pixels[i] = tap.is_inside(windows[i]) ? x + pixel * IN_WORDS : nullptr;
  }
  for (int word = 0; word < TAP_WORDS; ++word) {
    const Word mask = channel_mask(word), weights = tap_weights[word];
    const int channels = popcount(mask);
#pragma unroll
    for (int i = 0; i < LANE_PIXELS; ++i) {
      if (!pixels[i] && !PADDING_OF_ONES) continue;
      const Word signs = pixels[i] ? signs_of(pixels[i], group, word) : 0xffffffffu;
      sums[i] += channels - 2 * popcount((signs ^ weights) & mask);
    }
  }
}

// Keeps a filter's result; all lanes of a warp take part, as signs make one word.
DEVICE void keep_product(float product, bool there, const FilterNumbers& numbers, int filter,
                         Size pixel, const Finishing& finishing) {
  float y = 0;
  if (there) y = finished(product, residual_of(filter, pixel, finishing), numbers);
  if (KEPT == kB1) {
    const Word bits = ballot(there && is_positive(y, numbers));
    if (lane_number() == 0) {
      static_cast<Word*>(finishing.out)[pixel * OUT_WORDS + filter / 32] = bits;
    }
  } else if (there) {
    keep(y, filter, pixel, finishing);
  }
}

KERNEL(THREADS) popcount_product(const Word* x, const Word* weights, const float* base_scale,
                                 const float* affine, const float* slope, const float* threshold,
                                 const void* residual, void* out, signed char* levels, int pixels) {
  const Finishing finishing{base_scale, affine, slope, threshold, residual, out, levels};
  const int first_pixel = block_x() * BLOCK_PIXELS + warp_number() * LANE_PIXELS;
  const int filter = block_y() * 32 + lane_number();
  const bool there = filter < FILTERS;
  const int own = there ? filter : 0;
  Window windows[LANE_PIXELS];
#pragma unroll
  for (int i = 0; i < LANE_PIXELS; ++i) {
    const int pixel = first_pixel + i;
    windows[i] = window_of(pixel < pixels ? pixel : 0);
  }
  float products[LANE_PIXELS] = {};
  for (int basis = 0; basis < BASES; ++basis) {
    const Word* row = weights + (static_cast<Size>(basis) * FILTERS + own) * TAPS * TAP_WORDS;
    int sums[LANE_PIXELS] = {};
    for (int tap = 0; tap < TAPS; ++tap) {
      add_tap(sums, x, row + tap * TAP_WORDS, Tap(tap), own / GROUP_FILTERS, windows);
    }
#pragma unroll
    for (int i = 0; i < LANE_PIXELS; ++i) {
      products[i] = with_basis(products[i], sums[i], basis, own, finishing);
    }
  }
  const FilterNumbers numbers(own, finishing);
#pragma unroll
  for (int i = 0; i < LANE_PIXELS; ++i) {
    if (first_pixel + i < pixels) {  // the same for a whole warp
      keep_product(products[i], there, numbers, filter, first_pixel + i, finishing);
    }
  }
}
