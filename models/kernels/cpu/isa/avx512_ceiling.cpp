// The ceilings of the AVX-512 kernels.
#include "avx512_kernels.h"
#include "ceiling.h"

namespace bitpress {

double avx512_ceiling(const char* kernel) { return ceiling_of(kAvx512Products, kernel); }

}  // namespace bitpress
