#include "tile_rows.h"

#include <string.h>

#include <algorithm>

namespace bitpress {

TileRows::TileRows(const Geometry& geometry, const Tiling& tiling, const ProductKernel& kernel,
                   const Border& border, const ZeroOffsets& offsets, Layout& layout)
    : g_(geometry), t_(tiling), kernel_(kernel), border_(border), offsets_(offsets),
      prepared_(geometry, tiling, kernel, border, layout) {
  rows_ = layout.take<Row>(t_.tile_rows);
  segments_ = layout.take<const uint8_t*>(bytes_of(t_.tile_rows, t_.segments));
  window_sums_ = layout.take<int32_t>(bytes_of(t_.tile_rows, t_.row_pixels));
  column_sums_ = layout.take<int32_t>(t_.slot_pixels);
}

void TileRows::begin(const Batch& batch, const Slot& in) {
  images_ = batch.images;
  prepared_.forget(batch, in);
}

void TileRows::locate(int64_t group, int64_t first, int64_t count) {
  group_ = group;
  first_ = first;
  for (int64_t i = 0; i < count; ++i) locate_row(i);
}

void TileRows::locate_row(int64_t i) {
  Row& row = rows_[i];
  row.segments = segments_ + i * t_.segments;
  row.window_sums = kernel_.sums_of_ones ? window_sums_ + i * t_.row_pixels : nullptr;
  row.first_segment = 0;
  row.end_segment = t_.segments;
  const int64_t index = first_ + i;
  if (t_.flat) {
    row.first_pixel = index * t_.row_pixels;
    row.pixels = std::min(t_.row_pixels,
                          images_ * g_.rows * g_.columns - row.first_pixel);
    row.offset = offsets_.of_row(0);
    return;
  }
  const int64_t y = index % g_.rows, strip = index / g_.rows % t_.strips;
  const int64_t image = index / g_.rows / t_.strips;
  row.first_pixel = (image * g_.rows + y) * g_.columns + strip * t_.row_pixels;
  row.pixels = std::min(t_.row_pixels, g_.columns - strip * t_.row_pixels);
  row.offset = offsets_.of_row(y);
  if (border_.row() == nullptr) {
    const KernelRows inside = kernel_rows_inside(g_, y);
    row.first_segment = inside.first * t_.row_segments;
    row.end_segment = inside.last * t_.row_segments;
  }
}

void TileRows::prepare(int64_t i) {
  if (t_.flat) return prepare_slice(i, 0);
  Row& row = rows_[i];
  const int64_t index = first_ + i;
  const int64_t top = index % g_.rows * g_.stride_rows - g_.padding_rows;
  const int64_t strip = index / g_.rows % t_.strips, image = index / g_.rows / t_.strips;
  const int64_t columns = t_.unfold ? row.pixels
                                    : (row.pixels - 1) * g_.stride_columns +
                                          (g_.kernel_columns - 1) * g_.dilation_columns + 1;
  if (kernel_.sums_of_ones) std::fill_n(column_sums_, columns, 0);
  for (int64_t s = row.first_segment; s < row.end_segment; s += t_.row_segments) {
    const int64_t y = top + s / t_.row_segments * g_.dilation_rows;
    PreparedRows::Row made{border_.row(), nullptr};
    if (y >= 0 && y < g_.height) made = prepared_.of_map(group_, image, strip, y);
    for (int64_t tap = 0; tap < t_.row_segments; ++tap) {
      row.segments[s + tap] = made.pixels + tap * g_.dilation_columns * t_.pixel_bytes;
    }
    if (kernel_.sums_of_ones) {
      for (int64_t x = 0; x < columns; ++x) column_sums_[x] += made.sums[x];
    }
  }
  if (kernel_.sums_of_ones) sum_windows(row);
}

void TileRows::sum_windows(Row& row) {
  if (t_.unfold) {
    memcpy(row.window_sums, column_sums_, static_cast<size_t>(row.pixels) * sizeof(int32_t));
    return;
  }
  std::fill_n(row.window_sums, row.pixels, 0);
  for (int64_t tap = 0; tap < g_.kernel_columns; ++tap) {
    const int32_t* from = column_sums_ + tap * g_.dilation_columns;
    for (int64_t x = 0; x < row.pixels; ++x) {
      row.window_sums[x] += from[x * g_.stride_columns];
    }
  }
}

void TileRows::prepare_slice(int64_t i, int64_t slice) {
  Row& row = rows_[i];
  const PreparedRows::Row made =
      prepared_.of_all(group_, i, row.first_pixel, row.pixels, slice);
  row.segments[0] = made.pixels;
  if (!kernel_.sums_of_ones) return;
  if (slice == 0) std::fill_n(row.window_sums, row.pixels, 0);
  for (int64_t x = 0; x < row.pixels; ++x) row.window_sums[x] += made.sums[x];
}

}  // namespace bitpress
