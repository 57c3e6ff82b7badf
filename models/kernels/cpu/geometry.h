// What a product reads and makes, and how it is cut into pieces that fit the caches.
#pragma once
#include <stdint.h>

#include <vector>

#include "kernel_set.h"

namespace bitpress {

// A convolution in its plainest form: a kernel that covers the whole map is 1 x 1 on a pixel of all
// numbers, and an axis with one tap has no dilation.
struct Geometry {
  int64_t height, width, channels;
  int64_t rows, columns, filters;
  int64_t groups, group_channels, group_filters;
  int64_t kernel_rows, kernel_columns;
  int64_t stride_rows, stride_columns;
  int64_t padding_rows, padding_columns;
  int64_t dilation_rows, dilation_columns;

  int64_t weights() const { return kernel_rows * kernel_columns * group_channels; }  // of a filter
};

// How many windows fit along an axis, 0 where none does.
int64_t windows(int64_t length, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation);

// Of a step that has been checked.
Geometry geometry_of(const bp_step& step, const bp_value& in0);

// A part of the sum over a window: groups `group` on of segments `segment` on. Several segments
// only where it has all their groups.
struct Part {
  int64_t segment, segments;
  int64_t group, groups;
};

// A product's results are worked through in *rows* of at most `row_pixels` pixels, `tile_rows` at a
// time. A row is a stretch of a row of the map; or, where each result needs one prepared pixel that
// no other needs (`flat`), of all pixels of all images.
struct Tiling {
  // Prepared pixels. Where `unfold`, the kernel_columns * channels numbers of a row of the window
  // are one prepared pixel per result, else a prepared pixel is one of the input.
  bool flat, unfold;
  int64_t pixel_channels, pixel_groups, pixel_bytes;

  // Windows: a segment is one row of the kernel, or one tap where taps do not touch.
  int64_t row_segments;  // of a row of the kernel
  int64_t segments;
  int64_t taps;  // prepared pixels in a segment
  int64_t segment_groups;

  int64_t row_pixels, tile_rows;
  int64_t strips;         // rows into which a row of the map is cut
  int64_t slot_pixels;    // prepared pixels that a row needs of a row of input
  int64_t slots, slot_bytes;  // ring of prepared rows

  // Flat ones: prepared and multiplied so many groups at a time.
  int64_t slice_groups, slices;
  // Else, and where there is one slice: what is expanded and multiplied at a time.
  std::vector<Part> parts;

  int64_t block_filters, blocks;  // blocks of a group of filters
  // Blocks whose sums are kept while slices are added up; or that are worked on in turn for each
  // chunk of pixels.
  int64_t blocks_at_once;
  int64_t panel_bytes;  // for the expanded weights of a block, or of the largest part of it
  bool deferred;  // sums of a whole tile are completed before the first is finished
};

Tiling tiling_of(const Geometry& geometry, const ProductKernel& kernel, int64_t bases);

// Bytes of packed weights for the groups of a part of one segment.
int64_t packed_bytes(const ProductKernel& kernel, int64_t groups, int64_t filters);

// Vectors of filters in a block.
int vectors_of(const ProductKernel& kernel, int64_t filters);

}  // namespace bitpress
