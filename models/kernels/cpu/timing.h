// How long a product takes.
#pragma once
#include <stdint.h>

#include "kernel_set.h"

namespace bitpress {

// bp_time_product, of a step and value that have been checked. Throws std::bad_alloc.
double time_product(const KernelSet& set, int threads, const bp_step& step, const bp_value& in0,
                    const ProductKernel& kernel, int64_t images, int32_t repeats);

}  // namespace bitpress
