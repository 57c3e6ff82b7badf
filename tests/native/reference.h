// What each step of a program means, as plainly as it can be said: nested loops, sums in int64 or
// double. Slow, and the definition of right.
#pragma once
#include <cstdint>
#include <vector>

#include "abi.h"
#include "draft.h"

namespace bitpress::check {

// A value for all images of a batch, channels last; codes as whole numbers.
using Numbers = std::vector<float>;

struct Result {
  Numbers numbers;
  // How far a runtime may be off, number by number: 0 where every bit is defined.
  std::vector<double> tolerance;
  // Whether `numbers` are what the step writes as they stand, though it writes codes.
  bool codes = false;
};

// The shape of what a step makes, given that of what it reads.
int64_t windows(int64_t length, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation);

// q of `bits` bits for x (docs/FORMAT.md, 4.2).
float quantized(float x, float low, float step, int bits);

// Computes one step from `values`, which it reads, for `images` images. `x` is the program's input.
Result compute(const Draft& draft, const bp_step& step, const std::vector<Numbers>& values,
               const Numbers& x, int64_t images);

}  // namespace bitpress::check
