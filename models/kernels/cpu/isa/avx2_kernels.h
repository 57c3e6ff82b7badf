// What the AVX2 set consists of; each part has a file of its own. They need AVX2 and FMA.
#pragma once
#include "../kernel_set.h"

namespace bitpress {

extern const ProductKernel kAvx2LookupI16, kAvx2ExpandI8, kAvx2LookupF32, kAvx2MultiplyF32;

void avx2_finish(const Finish& finish, int64_t pixels, int64_t channels);

}  // namespace bitpress
