// Convolutions and linear layers: the loops around a kernel of kernel_set.h.
#pragma once
#include <stdint.h>

#include "finishing.h"
#include "geometry.h"
#include "packing.h"
#include "prepared_rows.h"
#include "step.h"

namespace bitpress {

class Product final : public Step {
 public:
  // Of a step that has been checked.
  Product(const bp_step& step, const bp_value& in0_value, const ProductKernel& kernel, Slot in0,
          Finishing finishing);

  int64_t units(int64_t images) const override;
  double unit_cost() const override;
  void run(const Batch& batch, Team& team, int member, uint8_t* scratch) const override;
  int64_t scratch_bytes() const override;
  int64_t stealable() const override;
  int64_t weight_bytes() const override;

 private:
  class Worker;

  int64_t rows(int64_t images) const;

  const ProductKernel& kernel_;
  Slot in0_;
  int64_t bases_;
  Geometry geometry_;
  Tiling tiling_;
  Border border_;
  PackedWeights weights_;
  ZeroOffsets offsets_;
  Finishing finishing_;
};

}  // namespace bitpress
