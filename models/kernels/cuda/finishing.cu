// From the sums of a product to what is kept of them.
//
// What a program does not know before it runs are pointers and the number of images. Everything
// else stands as a constant in capitals that the compiler is given: the geometry (IN_ROWS,
// IN_COLUMNS, IN_WORDS, OUT_ROWS, OUT_COLUMNS, KERNEL_ROWS, STRIDE_ROWS, PADDING_ROWS,
// DILATION_ROWS and their like for columns, PADDING_OF_ONES, TAPS, TAP_WORDS, GROUP_CHANNELS,
// GROUP_FILTERS, FILTERS, OUT_WORDS, BASES), and what is done with sums (HAS_BASE_SCALE,
// HAS_AFFINE, RESIDUAL, ACTIVATION, ACTIVATION_LOW, ACTIVATION_HIGH, KEPT, LEVEL_LOW, LEVEL_STEP,
// LEVEL_BITS, HAS_THRESHOLD). So branches that a layer does not take cost nothing.

enum Kind { kNone = 0, kF16 = 1, kF32 = 2, kI8 = 3, kB1 = 4 };
enum Function { kNoFunction = 0, kRelu = 1, kHardtanh = 2, kPrelu = 3 };

// Where the numbers are that finish a product; null where a constant says that there are none.
struct Finishing {
  const float* base_scale;  // (BASES, FILTERS)
  const float* affine;      // (2, FILTERS)
  const float* slope;       // (FILTERS)
  const float* threshold;   // (2, FILTERS)
  const void* residual;     // (pixels, FILTERS)
  void* out;                // (pixels, FILTERS), or words (pixels, OUT_WORDS)
};

// Where a filter reads: its window's first pixel, which may lie outside of the map.
struct Window {
  int image, row, column;
};

DEVICE Window window_of(int pixel) {
  const int line = pixel / OUT_COLUMNS;
  return {line / OUT_ROWS, line % OUT_ROWS * STRIDE_ROWS - PADDING_ROWS,
          (pixel - line * OUT_COLUMNS) * STRIDE_COLUMNS - PADDING_COLUMNS};
}

// Adds a basis to the product of a filter.
DEVICE float with_basis(float product, int sum, int basis, int filter,
                        const Finishing& finishing) {
  float z = number_of(sum);
  if (HAS_BASE_SCALE) z = product_of(finishing.base_scale[basis * FILTERS + filter], z);
  return basis == 0 ? z : sum_of(product, z);
}

// Comparisons are written so that what is no number stays none.
DEVICE float activated(float y, int filter, const Finishing& finishing) {
  if (ACTIVATION == kRelu) return y < 0 ? 0 : y;
  if (ACTIVATION == kHardtanh) {
    return y < ACTIVATION_LOW ? ACTIVATION_LOW : y > ACTIVATION_HIGH ? ACTIVATION_HIGH : y;
  }
  if (ACTIVATION == kPrelu) return y >= 0 ? y : product_of(finishing.slope[filter], y);
  return y;
}

// activation(affine(product) + residual) of a filter at a pixel.
DEVICE float finished(float product, int filter, Size pixel, const Finishing& finishing) {
  float y = product;
  if (HAS_AFFINE) {
    y = product_of(finishing.affine[filter], y);
    y = sum_of(y, finishing.affine[FILTERS + filter]);
  }
  const Size place = pixel * FILTERS + filter;
  if (RESIDUAL == kF16) {
    y = sum_of(y, number_of_half(static_cast<const Half*>(finishing.residual)[place]));
  }
  if (RESIDUAL == kF32) y = sum_of(y, static_cast<const float*>(finishing.residual)[place]);
  return activated(y, filter, finishing);
}

// The nearest level, less 128; halves go up.
DEVICE signed char level_of(float y) {
  if (LEVEL_BITS == 1) {
    const float middle = sum_of(LEVEL_LOW, quotient_of(LEVEL_STEP, 2));
    return static_cast<signed char>((y >= middle) - 128);
  }
  const float highest = (1 << LEVEL_BITS) - 1;
  const float steps = quotient_of(sum_of(y, -LEVEL_LOW), LEVEL_STEP);
  const float level = round_down(sum_of(steps, 0.5f));
  const float clamped = level >= highest ? highest : level >= 0 ? level : 0;
  return static_cast<signed char>(static_cast<int>(clamped) - 128);
}

// Whether +1 is kept of a filter's result.
DEVICE bool is_positive(float y, int filter, const Finishing& finishing) {
  if (!HAS_THRESHOLD) return y >= 0;
  return product_of(finishing.threshold[filter], y) >= finishing.threshold[FILTERS + filter];
}

// Keeps a number; not for kB1.
DEVICE void keep(float y, int filter, Size pixel, const Finishing& finishing) {
  const Size place = pixel * FILTERS + filter;
  if (KEPT == kF16) static_cast<Half*>(finishing.out)[place] = half_of(y);
  if (KEPT == kF32) static_cast<float*>(finishing.out)[place] = y;
  if (KEPT == kI8) static_cast<signed char*>(finishing.out)[place] = level_of(y);
}

// Keeps the numbers of two filters at once, of which `filter`, an even one, is the first: for
// FILTERS an even number, where both lie next to each other at a multiple of their size.
DEVICE void keep_two(float y0, float y1, int filter, Size pixel, const Finishing& finishing) {
  const Size place = (pixel * FILTERS + filter) / 2;
  if (KEPT == kF16) {
    static_cast<Word*>(finishing.out)[place] = half_of(y0) | Word{half_of(y1)} << 16;
  }
  if (KEPT == kF32) static_cast<float2*>(finishing.out)[place] = float2{y0, y1};
  if (KEPT == kI8) {
    const Half levels = static_cast<unsigned char>(level_of(y0)) |
                        static_cast<unsigned char>(level_of(y1)) << 8;
    static_cast<Half*>(finishing.out)[place] = levels;
  }
}
