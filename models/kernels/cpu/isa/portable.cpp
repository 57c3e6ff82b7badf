// The kernels for any processor: plain C++ that a compiler can vectorise for its baseline.
#include "../kernel_set.h"
#include "ceiling.h"
#include "portable_finish.h"
#include "portable_lookup.h"
#include "portable_multiply.h"

namespace bitpress {
namespace {

void max_u8(uint8_t* out, const uint8_t* in, int64_t count) {
  for (int64_t i = 0; i < count; i++) out[i] = in[i] > out[i] ? in[i] : out[i];
}

// NaN wins, as in torch's pooling.
void max_f32(float* out, const float* in, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    const float kept = in[i] <= out[i] || out[i] != out[i] ? out[i] : in[i];
    out[i] = kept;
  }
}

void add_f32(float* out, const float* in, int64_t count) {
  for (int64_t i = 0; i < count; i++) out[i] += in[i];
}

void numbers_of_codes(const uint8_t* in, float step, float low, float* out, int64_t count) {
  for (int64_t i = 0; i < count; i++) out[i] = static_cast<float>(in[i]) * step + low;
}

const ProductKernel* const kProducts[] = {&kLookupI16, &kLookupF32, &kMultiplyF32, nullptr};

double ceiling(const char* kernel) { return ceiling_of(kProducts, kernel); }

const KernelSet kPortable = {
    BP_PORTABLE, "portable", kProducts, finish_tile, max_u8, max_f32, add_f32, numbers_of_codes,
    ceiling,
};

}  // namespace

const KernelSet* portable_kernels() { return &kPortable; }

}  // namespace bitpress
