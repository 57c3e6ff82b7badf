// The kernels for any processor: plain C++ that a compiler can vectorise for its baseline.
#include "../kernel_set.h"
#include "pooling.h"
#include "portable_expand_i16.h"
#include "portable_finish.h"
#include "portable_multiply.h"

namespace bitpress {
namespace {

constexpr const ProductKernel* kProducts[] = {&kExpandI16, &kExpandF32, &kMultiplyF32, nullptr};

constexpr KernelSet kPortable = {
    BP_PORTABLE,  "portable",   kProducts, finish_tile,
    greatest_u8,  greatest_f32, add_f32,   numbers_of_codes,
};

}  // namespace

const KernelSet* portable_kernels() { return &kPortable; }

}  // namespace bitpress
