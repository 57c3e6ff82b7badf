// Random programs: one to four steps of any kind behind an input.
#pragma once
#include <cstdint>

#include "draft.h"
#include "random.h"

namespace bitpress::check {

struct Case {
  Draft draft;  // without an output step
  int64_t images = 1;
  int64_t max_images = 1;
  int threads = 1;
  std::vector<float> x;
};

// `large`: some hundred times the work of the others, for tiles, rings of rows and chunks.
Case draw_case(Random& random, bool large);

// A deep product of one kind of numbers and weights throughout, where sums are greatest.
Case draw_extreme_case(Random& random);

// A deep product of float32 numbers that are all alike: each addition errs to the same side.
Case draw_biased_case(Random& random);

// Codes of the numbers halfway between two of them, and of their neighbours.
Case draw_halfway_case(Random& random);

}  // namespace bitpress::check
