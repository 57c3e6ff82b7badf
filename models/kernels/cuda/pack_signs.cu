// From numbers to signs, a bit each: x (pixels, CHANNELS) to words (pixels, OUT_WORDS).
//
// A warp makes WARP_WORDS words: each lane compares one channel of each, so that a warp reads 32
// numbers that lie next to each other at a time. Constants: CHANNELS, OUT_WORDS, HAS_THRESHOLD, and
// READS_HALF, whether x is binary16 rather than binary32.

constexpr int THREADS = 256;
constexpr int WARP_WORDS = 4;

DEVICE float number_at(const void* x, Size place) {
  if (READS_HALF) return number_of_half(static_cast<const Half*>(x)[place]);
  return static_cast<const float*>(x)[place];
}

DEVICE bool is_positive(float x, int channel, const float* threshold) {
  if (!HAS_THRESHOLD) return x >= 0;
  return product_of(threshold[channel], x) >= threshold[CHANNELS + channel];
}

KERNEL(THREADS) pack_signs(const void* x, const float* threshold, Word* out, Size words) {
  const Size warp = Size{block_x()} * (THREADS / 32) + warp_number();
  float numbers[WARP_WORDS];
#pragma unroll
  for (int i = 0; i < WARP_WORDS; ++i) {  // all reads before the first use
    const Size word = warp * WARP_WORDS + i;
    const int channel = static_cast<int>(word % OUT_WORDS) * 32 + lane_number();
    const bool there = word < words && channel < CHANNELS;
    numbers[i] = there ? number_at(x, word / OUT_WORDS * CHANNELS + channel) : 0;
  }
#pragma unroll
  for (int i = 0; i < WARP_WORDS; ++i) {
    const Size word = warp * WARP_WORDS + i;
    const int channel = static_cast<int>(word % OUT_WORDS) * 32 + lane_number();
    const bool there = word < words && channel < CHANNELS;
    const Word bits = ballot(there && is_positive(numbers[i], channel, threshold));
    if (lane_number() == 0 && word < words) out[word] = bits;
  }
}
