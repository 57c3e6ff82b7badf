// Weights in the order in which a kernel reads them.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "geometry.h"
#include "memory.h"

namespace bitpress {

// Weights of a product: for each basis, group of the convolution and block of filters what
// kernel_set.h, ProductKernel::multiply, describes, aligned.
class PackedWeights {
 public:
  // `packed_bits` or `weight` as in bp_step.
  PackedWeights(const Geometry& geometry, const Tiling& tiling, const ProductKernel& kernel,
                const uint8_t* packed_bits, int64_t row_bytes, const float* weight,
                int64_t bases);

  const uint8_t* block(int64_t basis, int64_t group, int64_t block) const {
    return memory_.data() + ((basis * groups_ + group) * blocks_ + block) * block_bytes_;
  }
  int64_t bytes() const { return memory_.bytes(); }

 private:
  int64_t groups_, blocks_, block_bytes_;
  Memory memory_;
};

// What codes add to the sums for not standing for q but for q - zero: zero times the sum of the
// weights that are in the window. Rows of the kernel that lie in the border are left out of sums,
// so that there are as many variants as ways to be cut off.
class ZeroOffsets {
 public:
  ZeroOffsets() = default;
  ZeroOffsets(const Geometry& geometry, const uint8_t* packed_bits, int64_t row_bytes,
              int64_t bases, int32_t zero);

  // (bases, filters) for row `row` of the map that is made; null where zero is 0.
  const int32_t* of_row(int64_t row) const {
    return variants_.empty() ? nullptr
                             : offsets_.data() + variants_[static_cast<size_t>(row)] * variant_;
  }
  int64_t bytes() const { return static_cast<int64_t>((offsets_.size() + variants_.size()) * 4); }

 private:
  int64_t variant_ = 0;            // numbers in a variant
  std::vector<int32_t> variants_;  // of each row
  std::vector<int32_t> offsets_;
};

// The rows of the kernel that lie in the map, for row `row` of what is made: from `first` on, up to
// but without `last`.
struct KernelRows {
  int64_t first, last;
};
KernelRows kernel_rows_inside(const Geometry& geometry, int64_t row);

}  // namespace bitpress
