// What the AVX-512 set consists of; each part has a file of its own. They need AVX-512 F, BW, VL,
// DQ and VNNI.
#pragma once
#include "../kernel_set.h"

namespace bitpress {

extern const ProductKernel kAvx512LookupI16, kAvx512ExpandI8, kAvx512LookupF32, kAvx512MultiplyF32;

void avx512_finish(const Finish& finish, int64_t pixels, int64_t channels);

}  // namespace bitpress
