// From the sums of a product to what is kept of them.
//
// What a program does not know before it runs are pointers and the number of images. Everything
// else stands as a constant in capitals that the compiler is given: the geometry (IN_ROWS,
// IN_COLUMNS, IN_WORDS, OUT_ROWS, OUT_COLUMNS, KERNEL_ROWS, STRIDE_ROWS, PADDING_ROWS,
// DILATION_ROWS and their like for columns, PADDING_OF_ONES, TAPS, TAP_WORDS, GROUP_CHANNELS,
// GROUP_FILTERS, FILTERS, OUT_WORDS, BASES), and what is done with sums (HAS_BASE_SCALE,
// HAS_AFFINE, RESIDUAL, ACTIVATION, ACTIVATION_LOW, ACTIVATION_HIGH, KEPT, HAS_LEVELS, LEVEL_LOW,
// LEVEL_STEP, LEVEL_BITS, HAS_THRESHOLD). So branches that a layer does not take cost nothing.

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
  signed char* levels;      // (pixels, FILTERS), where HAS_LEVELS; `out` may be the same
};

// Where a filter reads: the first pixel of its window, which may lie outside of the map, and that
// pixel's number among all of x.
struct alignas(16) Window {
  int row, column, pixel;
};

DEVICE Window window_of(int out_pixel) {
  const int line = out_pixel / OUT_COLUMNS, image = line / OUT_ROWS;
  const int row = (line - image * OUT_ROWS) * STRIDE_ROWS - PADDING_ROWS;
  const int column = (out_pixel - line * OUT_COLUMNS) * STRIDE_COLUMNS - PADDING_COLUMNS;
  return {row, column, (image * IN_ROWS + row) * IN_COLUMNS + column};
}

// A tap's place in a window.
struct Tap {
  int row, column;

  DEVICE explicit Tap(int number)
      : row(number / KERNEL_COLUMNS * DILATION_ROWS),
        column(number % KERNEL_COLUMNS * DILATION_COLUMNS) {}

  DEVICE bool is_inside(const Window& window) const {
    // As unsigned numbers, those below 0 are beyond every end.
    return static_cast<unsigned>(window.row + row) < static_cast<unsigned>(IN_ROWS) &&
           static_cast<unsigned>(window.column + column) < static_cast<unsigned>(IN_COLUMNS);
  }
  DEVICE int pixel(const Window& window) const {
    return window.pixel + row * IN_COLUMNS + column;
  }
};

// What finishes the products of one filter, read once for many pixels.
struct FilterNumbers {
  float gain = 1, shift = 0, slope = 1, sense = 1, threshold = 0;

  DEVICE FilterNumbers(int filter, const Finishing& finishing) {
    if (HAS_AFFINE) {
      gain = finishing.affine[filter];
      shift = finishing.affine[FILTERS + filter];
    }
    if (ACTIVATION == kPrelu) slope = finishing.slope[filter];
    if (HAS_THRESHOLD) {
      sense = finishing.threshold[filter];
      threshold = finishing.threshold[FILTERS + filter];
    }
  }
};

// Adds a basis to the product of a filter.
DEVICE float with_basis(float product, int sum, int basis, int filter,
                        const Finishing& finishing) {
  float z = number_of(sum);
  if (HAS_BASE_SCALE) z = product_of(finishing.base_scale[basis * FILTERS + filter], z);
  return basis == 0 ? z : sum_of(product, z);
}

// Comparisons are written so that what is no number stays none.
DEVICE float activated(float y, const FilterNumbers& numbers) {
  if (ACTIVATION == kRelu) return y < 0 ? 0 : y;
  if (ACTIVATION == kHardtanh) {
    return y < ACTIVATION_LOW ? ACTIVATION_LOW : y > ACTIVATION_HIGH ? ACTIVATION_HIGH : y;
  }
  if (ACTIVATION == kPrelu) return y >= 0 ? y : product_of(numbers.slope, y);
  return y;
}

// What is added to a filter's product at a pixel, where anything is.
DEVICE float residual_of(int filter, Size pixel, const Finishing& finishing) {
  const Size place = pixel * FILTERS + filter;
  if (RESIDUAL == kF16) {
    return number_of_half(static_cast<const Half*>(finishing.residual)[place]);
  }
  return RESIDUAL == kF32 ? static_cast<const float*>(finishing.residual)[place] : 0;
}

// The same of two filters at once, as for `keep_two`.
DEVICE float2 residuals_of(int filter, Size pixel, const Finishing& finishing) {
  const Size place = (pixel * FILTERS + filter) / 2;
  if (RESIDUAL == kF16) {
    const Word both = static_cast<const Word*>(finishing.residual)[place];
    return {number_of_half(static_cast<Half>(both)), number_of_half(static_cast<Half>(both >> 16))};
  }
  return RESIDUAL == kF32 ? static_cast<const float2*>(finishing.residual)[place] : float2{0, 0};
}

// activation(affine(product) + residual) of a filter.
DEVICE float finished(float product, float residual, const FilterNumbers& numbers) {
  float y = product;
  if (HAS_AFFINE) y = sum_of(product_of(numbers.gain, y), numbers.shift);
  if (RESIDUAL != kNone) y = sum_of(y, residual);
  return activated(y, numbers);
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
DEVICE bool is_positive(float y, const FilterNumbers& numbers) {
  return HAS_THRESHOLD ? product_of(numbers.sense, y) >= numbers.threshold : y >= 0;
}

// Keeps a number, its level, or both; not for kB1.
DEVICE void keep(float y, int filter, Size pixel, const Finishing& finishing) {
  const Size place = pixel * FILTERS + filter;
  if (KEPT == kF16) static_cast<Half*>(finishing.out)[place] = half_of(y);
  if (KEPT == kF32) static_cast<float*>(finishing.out)[place] = y;
  if (HAS_LEVELS) finishing.levels[place] = level_of(y);
}

// Keeps the numbers of two filters at once, of which `filter`, an even one, is the first: where
// FILTERS is even, so that both lie together at a multiple of their size.
DEVICE void keep_two(float y0, float y1, int filter, Size pixel, const Finishing& finishing) {
  const Size place = (pixel * FILTERS + filter) / 2;
  if (KEPT == kF16) {
    static_cast<Word*>(finishing.out)[place] = half_of(y0) | Word{half_of(y1)} << 16;
  }
  if (KEPT == kF32) static_cast<float2*>(finishing.out)[place] = float2{y0, y1};
  if (HAS_LEVELS) {
    const Half levels = static_cast<unsigned char>(level_of(y0)) |
                        static_cast<unsigned char>(level_of(y1)) << 8;
    reinterpret_cast<Half*>(finishing.levels)[place] = levels;
  }
}
