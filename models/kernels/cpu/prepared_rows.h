// Rows of a product's input, prepared for the multiplication and kept as long as tiles need them.
#pragma once
#include <stdint.h>

#include "geometry.h"
#include "step.h"

namespace bitpress {

// What the border holds: pixels, and where it does not count as zero a whole prepared row of them.
class Border {
 public:
  Border(const Geometry& geometry, const Tiling& tiling, const ProductKernel& kernel,
         const bp_step& step);

  const void* pixel() const { return pixel_.data(); }
  // The code or float32 number all of it is made of.
  uint8_t code() const { return code_; }
  float number() const { return number_; }
  // Null where rows in the border add nothing to a sum and are left out.
  const uint8_t* row() const { return row_.data(); }
  int64_t bytes() const { return pixel_.bytes() + row_.bytes(); }

 private:
  uint8_t code_;
  float number_;
  Memory pixel_, row_;
};

// A ring of prepared rows in a thread's scratch memory. Rows of the map that two tiles share are
// found there by the second one.
class PreparedRows {
 public:
  PreparedRows(const Geometry& geometry, const Tiling& tiling, const ProductKernel& kernel,
               const Border& border, Layout& layout);

  // Before a step: what the memory holds is of another step.
  void forget(const Batch& batch, const Slot& in);

  struct Row {
    const uint8_t* pixels;
    const int32_t* sums;  // of each pixel, where the kernel makes them
  };
  // What strip `strip` of the results needs of row `y` of an image.
  Row of_map(int64_t group, int64_t image, int64_t strip, int64_t y);
  // Slice `slice` of the pixels that results first..first + pixels - 1 need, of all images; to the
  // place of row `row` in the tile.
  Row of_all(int64_t group, int64_t row, int64_t first, int64_t pixels, int64_t slice);

 private:
  void prepare_map_row(int64_t group, int64_t image, int64_t strip, int64_t y, uint8_t* out,
                       int32_t* sums);
  // A line of the map with its border, where parts of it are one prepared pixel.
  const uint8_t* line_with_border(const uint8_t* from, int64_t left, int64_t middle,
                                  int64_t right);

  const Geometry& g_;
  const Tiling& t_;
  const ProductKernel& kernel_;
  const Border& border_;
  int64_t number_bytes_;
  uint8_t* ring_;
  int32_t* sums_;
  int64_t* keys_;  // which row a slot holds
  uint8_t* line_;
  const uint8_t* in_ = nullptr;
  int64_t images_ = 0;
};

}  // namespace bitpress
