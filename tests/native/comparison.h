// Runs a case on one instruction set and holds every value in it to the reference.
#pragma once
#include <string>

#include "cases.h"

namespace bitpress::check {

struct Outcome {
  std::string difference;  // empty where there is none
  int64_t numbers = 0;     // compared
  int runs = 0;
};

// Every product runs on each of its kernels at least once; with other numbers of threads and images
// at once the results must be the same to the bit.
Outcome compare(const Case& drawn, int32_t isa);

}  // namespace bitpress::check
