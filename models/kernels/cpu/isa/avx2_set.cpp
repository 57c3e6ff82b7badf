// The AVX2 set.
#include "avx2_kernels.h"
#include "pooling.h"

namespace bitpress {
namespace {

constexpr const ProductKernel* kProducts[] = {&kAvx2LookupI16, &kAvx2ExpandI8, &kAvx2LookupF32,
                                          &kAvx2MultiplyF32, nullptr};

constexpr KernelSet kAvx2 = {
    BP_AVX2,      "avx2",       kProducts, avx2_finish,
    greatest_u8,  greatest_f32, add_f32,   numbers_of_codes,
};

}  // namespace

const KernelSet* avx2_kernels() { return &kAvx2; }

}  // namespace bitpress
