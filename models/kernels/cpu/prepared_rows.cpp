#include "prepared_rows.h"

#include <string.h>

#include <algorithm>

namespace bitpress {
namespace {

int64_t number_bytes(const ProductKernel& kernel) { return kernel.input == BP_U8 ? 1 : 4; }

// Numbers of a line of the map as wide as a row of results needs it.
int64_t line_numbers(const Geometry& g, const Tiling& t) {
  const bool lines = t.unfold && g.padding_columns != 0;
  return lines ? ((t.row_pixels - 1) * g.stride_columns + g.kernel_columns) * g.channels : 0;
}

}  // namespace

Border::Border(const Geometry& g, const Tiling& t, const ProductKernel& kernel,
               const bp_step& step)
    : code_(static_cast<uint8_t>(step.in_zero)), number_(static_cast<float>(step.pad_value)) {
  if (g.padding_rows == 0 && g.padding_columns == 0) return;
  pixel_ = Memory(bytes_of(t.pixel_channels, number_bytes(kernel)));
  if (kernel.input == BP_U8) {
    memset(pixel_.data(), code_, static_cast<size_t>(t.pixel_channels));
    return;
  }
  std::fill_n(reinterpret_cast<float*>(pixel_.data()), t.pixel_channels, number_);
  if (number_ == 0 || g.padding_rows == 0) return;
  row_ = Memory(t.slot_bytes);
  kernel.prepare(pixel_.data(), 0, t.slot_pixels, t.pixel_channels, row_.data(), nullptr);
}

PreparedRows::PreparedRows(const Geometry& geometry, const Tiling& tiling,
                           const ProductKernel& kernel, const Border& border, Layout& layout)
    : g_(geometry), t_(tiling), kernel_(kernel), border_(border),
      number_bytes_(number_bytes(kernel)) {
  ring_ = layout.take<uint8_t>(bytes_of(t_.slots, t_.slot_bytes));
  sums_ = layout.take<int32_t>(kernel.sums_of_ones ? bytes_of(t_.slots, t_.slot_pixels) : 0);
  keys_ = layout.take<int64_t>(t_.slots);
  line_ = layout.take<uint8_t>(bytes_of(line_numbers(g_, t_), number_bytes_));
}

void PreparedRows::forget(const Batch& batch, const Slot& in) {
  in_ = in.at<const uint8_t>(batch);
  images_ = batch.images;
  std::fill_n(keys_, t_.slots, INT64_C(-1));
}

PreparedRows::Row PreparedRows::of_map(int64_t group, int64_t image, int64_t strip, int64_t y) {
  const int64_t slot = y % t_.slots;
  const int64_t key = ((group * images_ + image) * t_.strips + strip) * g_.height + y;
  uint8_t* out = ring_ + slot * t_.slot_bytes;
  int32_t* sums = kernel_.sums_of_ones ? sums_ + slot * t_.slot_pixels : nullptr;
  if (keys_[slot] != key) {
    prepare_map_row(group, image, strip, y, out, sums);
    keys_[slot] = key;
  }
  return {out, sums};
}

void PreparedRows::prepare_map_row(int64_t group, int64_t image, int64_t strip, int64_t y,
                                   uint8_t* out, int32_t* sums) {
  const int64_t first = strip * t_.row_pixels;
  const int64_t pixels = std::min(t_.row_pixels, g_.columns - first);
  const int64_t column = first * g_.stride_columns - g_.padding_columns;
  const int64_t columns =
      (pixels - 1) * g_.stride_columns + (g_.kernel_columns - 1) * g_.dilation_columns + 1;
  const int64_t left = std::clamp<int64_t>(-column, 0, columns);
  const int64_t right = std::clamp<int64_t>(column + columns - g_.width, 0, columns - left);
  const int64_t middle = columns - left - right;
  const int64_t channel = group * g_.group_channels;
  const int64_t column_inside = std::clamp<int64_t>(column + left, 0, g_.width - 1);
  const uint8_t* from =
      in_ + ((image * g_.height + y) * g_.width + column_inside) * g_.channels * number_bytes_;
  if (t_.unfold) {
    const uint8_t* line =
        left + right == 0 ? from : line_with_border(from, left, middle, right);
    kernel_.prepare(line + channel * number_bytes_, g_.stride_columns * g_.channels, pixels,
                    t_.pixel_channels, out, sums);
    return;
  }
  const auto prepare = [&](const void* in, int64_t pitch, int64_t begin, int64_t count) {
    if (count == 0) return;
    kernel_.prepare(in, pitch, count, t_.pixel_channels, out + begin * t_.pixel_bytes,
                    sums == nullptr ? nullptr : sums + begin);
  };
  prepare(border_.pixel(), 0, 0, left);
  prepare(from + channel * number_bytes_, g_.channels, left, middle);
  prepare(border_.pixel(), 0, left + middle, right);
}

const uint8_t* PreparedRows::line_with_border(const uint8_t* from, int64_t left, int64_t middle,
                                              int64_t right) {
  const auto fill = [&](int64_t begin, int64_t pixels) {
    if (number_bytes_ == 1) {
      memset(line_ + begin * g_.channels, border_.code(),
             static_cast<size_t>(pixels * g_.channels));
    } else {
      std::fill_n(reinterpret_cast<float*>(line_) + begin * g_.channels, pixels * g_.channels,
                  border_.number());
    }
  };
  const int64_t pixel_bytes = g_.channels * number_bytes_;
  fill(0, left);
  memcpy(line_ + left * pixel_bytes, from, static_cast<size_t>(middle * pixel_bytes));
  fill(left + middle, right);
  return line_;
}

PreparedRows::Row PreparedRows::of_all(int64_t group, int64_t row, int64_t first, int64_t pixels,
                                       int64_t slice) {
  uint8_t* out = ring_ + row * t_.slot_bytes;
  int32_t* sums = kernel_.sums_of_ones ? sums_ + row * t_.slot_pixels : nullptr;
  const int64_t key = group * images_ * g_.rows * g_.columns + first;
  if (t_.slices == 1 && keys_[row] == key) return {out, sums};
  keys_[row] = key;

  const int64_t slice_channels = t_.slice_groups * kernel_.group_channels;
  const int64_t begin = slice * slice_channels;
  const int64_t channels = std::min(slice_channels, t_.pixel_channels - begin);
  const int64_t channel = group * g_.group_channels + begin;
  const bool same_pixels = g_.kernel_columns == 1 && g_.stride_rows == 1 && g_.stride_columns == 1;
  if (same_pixels) {
    kernel_.prepare(in_ + (first * g_.channels + channel) * number_bytes_, g_.channels, pixels,
                    channels, out, sums);
    return {out, sums};
  }
  const int64_t groups = ceil_div(channels, kernel_.group_channels);
  for (int64_t done = 0; done < pixels;) {
    const int64_t map_row = (first + done) / g_.columns;  // of all images
    const int64_t x = (first + done) % g_.columns;
    const int64_t count = std::min(pixels - done, g_.columns - x);
    const int64_t image = map_row / g_.rows, y = map_row % g_.rows * g_.stride_rows;
    const int64_t pixel = (image * g_.height + y) * g_.width + x * g_.stride_columns;
    kernel_.prepare(in_ + (pixel * g_.channels + channel) * number_bytes_,
                    g_.stride_columns * g_.channels, count, channels,
                    out + done * groups * kernel_.group_bytes,
                    sums == nullptr ? nullptr : sums + done);
    done += count;
  }
  return {out, sums};
}

}  // namespace bitpress
