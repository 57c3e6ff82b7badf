// What a kernel can reach at most.
#pragma once
#include "kernel_set.h"

namespace bitpress {

// bp_ceiling. Throws std::bad_alloc.
double ceiling(const KernelSet& set, const char* name);

}  // namespace bitpress
