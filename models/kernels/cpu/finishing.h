// What becomes of a step's results: where they go, and what is done with them on the way.
#pragma once
#include <stdint.h>

#include "step.h"

namespace bitpress {

// Kernels read a product's sums and arrays of channels in whole registers.
constexpr int64_t kSpareSums = 16;

class Finishing {
 public:
  // Copies the step's arrays, (channels,) each, and its base_scale, (bases, channels), if it is a
  // product.
  Finishing(const KernelSet& set, const bp_step& step, int64_t channels, Slot residual,
            Slot out_f32, Slot out_u8);

  // To finish results from pixel `pixel` of all images and channel `channel` on. Sums are left to
  // the caller.
  Finish at(const Batch& batch, int64_t pixel, int64_t channel) const;
  void operator()(const Finish& finish, int64_t pixels, int64_t channels) const {
    set_.finish(finish, pixels, channels);
  }

  // Whether all channels are treated alike, so that any stretch of numbers is as good as a pixel.
  bool uniform() const { return arrays_.bytes() == 0; }
  int64_t bytes() const { return arrays_.bytes(); }

 private:
  const KernelSet& set_;
  int64_t channels_;
  Slot residual_, out_f32_, out_u8_;
  Memory arrays_;
  Finish finish_{};
};

}  // namespace bitpress
