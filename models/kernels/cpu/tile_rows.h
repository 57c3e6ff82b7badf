// The rows of results that one thread works on at a time, and where what they read is prepared.
#pragma once
#include <stdint.h>

#include "packing.h"
#include "prepared_rows.h"

namespace bitpress {

class TileRows {
 public:
  TileRows(const Geometry& geometry, const Tiling& tiling, const ProductKernel& kernel,
           const Border& border, const ZeroOffsets& offsets, Layout& layout);

  struct Row {
    int64_t first_pixel, pixels;         // of what is made, of all images
    int64_t first_segment, end_segment;  // of the window; others lie in the border
    const uint8_t** segments;            // where each begins for the first pixel
    int32_t* window_sums;                // of each pixel, where the kernel wants them
    const int32_t* offset;               // (bases, filters) or null
  };
  const Row& operator[](int64_t i) const { return rows_[i]; }

  // Before a step.
  void begin(const Batch& batch, const Slot& in);
  // A tile of `count` rows from row `first` of a group of the convolution on.
  void locate(int64_t group, int64_t first, int64_t count);
  // What row `i` of the tile reads; or, of a flat product, a slice of it.
  void prepare(int64_t i);
  void prepare_slice(int64_t i, int64_t slice);

 private:
  void locate_row(int64_t i);
  void sum_windows(Row& row);

  const Geometry& g_;
  const Tiling& t_;
  const ProductKernel& kernel_;
  const Border& border_;
  const ZeroOffsets& offsets_;
  PreparedRows prepared_;
  Row* rows_;
  const uint8_t** segments_;
  int32_t* window_sums_;
  int32_t* column_sums_;
  int64_t images_ = 0;
  int64_t group_ = 0, first_ = 0;
};

}  // namespace bitpress
