// The unit of work is one row of results for one block of filters; units are numbered row by row,
// and the rows of one group of the convolution after those of another. A tile is a few whole rows,
// or a part of one row. Within a tile the loops are, from the outside: slices of the sum (flat
// products only), blocks of filters, bases, parts of the sum, rows, and chunks of at most
// kMaxPixels pixels.
//
// In which pieces a sum is added up follows from the geometry and the kernel alone, so that neither
// threads nor the size of the batch change a bit of float32 results.
#include "product.h"

#include <algorithm>
#include <utility>

#include "tile_rows.h"

namespace bitpress {
namespace {

// Multiply-accumulates per nanosecond, about, for guessing whether threads pay.
constexpr double kMacsPerNanosecond = 200;

}  // namespace

Product::Product(const bp_step& step, const bp_value& in0_value, const ProductKernel& kernel,
                 Slot in0, Finishing finishing)
    : kernel_(kernel),
      in0_(in0),
      bases_(step.bases),
      geometry_(geometry_of(step, in0_value)),
      tiling_(tiling_of(geometry_, kernel, step.bases)),
      border_(geometry_, tiling_, kernel, step),
      weights_(geometry_, tiling_, kernel, step.packed_bits, step.row_bytes, step.weight,
               step.bases),
      finishing_(std::move(finishing)) {
  if (kernel.input == BP_U8) {
    offsets_ = ZeroOffsets(geometry_, step.packed_bits, step.row_bytes, bases_, step.in_zero);
  }
}

int64_t Product::rows(int64_t images) const {
  const Geometry& g = geometry_;
  if (tiling_.flat) return ceil_div(images * g.rows * g.columns, tiling_.row_pixels);
  return images * tiling_.strips * g.rows;
}

int64_t Product::units(int64_t images) const {
  return geometry_.groups * rows(images) * tiling_.blocks;
}

double Product::unit_cost() const {
  const int64_t filters = std::min(tiling_.block_filters, geometry_.group_filters);
  const int64_t pixels = std::min(tiling_.row_pixels, geometry_.rows * geometry_.columns);
  return static_cast<double>(geometry_.weights()) * static_cast<double>(filters * pixels) *
         static_cast<double>(bases_) / kMacsPerNanosecond;
}

// Less than a row would have the same pixels prepared by two threads for little.
int64_t Product::stealable() const { return std::max<int64_t>(2, tiling_.blocks); }

int64_t Product::weight_bytes() const {
  return weights_.bytes() + offsets_.bytes() + finishing_.bytes() + border_.bytes();
}

// One thread's part in a run.
class Product::Worker {
 public:
  Worker(const Product& product, const Batch& batch, Layout& layout)
      : p_(product), g_(product.geometry_), t_(product.tiling_), kernel_(product.kernel_),
        batch_(batch),
        rows_(product.geometry_, product.tiling_, product.kernel_, product.border_,
              product.offsets_, layout) {
    const int64_t pixels = t_.deferred ? t_.tile_rows * t_.row_pixels : kMaxPixels;
    plane_ = pixels * t_.block_filters;
    const int64_t planes = bytes_of(t_.slices > 1 ? t_.blocks_at_once : 1, p_.bases_);
    sums_ = layout.take<int32_t>(bytes_of(planes, plane_) + kSpareSums);
    panel_bytes_ = t_.panel_bytes;
    panels_ = layout.take<uint8_t>(bytes_of(t_.blocks_at_once, panel_bytes_));
  }

  void work(Team& team, int member) {
    rows_.begin(batch_, p_.in0_);
    const int64_t group_units = p_.rows(batch_.images) * t_.blocks;
    // Rows of a tile share prepared rows: they are of one strip of one image.
    const int64_t wall_units = t_.flat ? group_units : g_.rows * t_.blocks;
    for (;;) {
      const Stretch units = team.take(member, t_.blocks, t_.tile_rows, wall_units);
      if (units.empty()) return;
      group_ = units.begin / group_units;
      const int64_t in_group = units.begin % group_units;
      const int64_t first_block = in_group % t_.blocks;
      const int64_t count = units.end - units.begin;
      row_count_ = std::max<int64_t>(1, count / t_.blocks);
      const int64_t end_block = std::min(t_.blocks, first_block + count);
      rows_.locate(group_, in_group / t_.blocks, row_count_);
      if (t_.slices > 1) {
        for (int64_t b = first_block; b < end_block; b += t_.blocks_at_once) {
          add_slices(b, std::min(end_block, b + t_.blocks_at_once));
        }
        continue;
      }
      for (int64_t i = 0; i < row_count_; ++i) rows_.prepare(i);
      for (int64_t b = first_block; b < end_block; b += t_.blocks_at_once) {
        if (t_.deferred) {
          add_parts(b);
          for (int64_t i = 0; i < row_count_; ++i) finish_row(b, i, sums_);
        } else {
          multiply_and_finish(b, std::min(end_block, b + t_.blocks_at_once));
        }
      }
    }
  }

 private:
  using Row = TileRows::Row;

  int vectors(int64_t block) const {
    return vectors_of(kernel_, g_.group_filters - block * t_.block_filters);
  }
  int64_t pixel_step() const {
    return t_.unfold ? t_.pixel_bytes : t_.pixel_bytes * g_.stride_columns;
  }
  static int64_t chunk_of(int64_t pixels) {
    return ceil_div(pixels, ceil_div(pixels, kMaxPixels));  // as even as possible
  }
  int32_t* plane(int64_t block_at_once, int64_t basis) {
    return sums_ + (block_at_once * p_.bases_ + basis) * plane_;
  }

  // Segments `first`..`end` - 1 of a row's windows, and of each the groups of `part`, to `sums`.
  void multiply(const Row& row, int64_t first, int64_t end, const Part& part,
                const uint8_t* weights, int vectors, int32_t* sums, bool accumulate) {
    const int64_t pitch = int64_t{vectors} * kernel_.lanes;
    const int64_t chunk = chunk_of(row.pixels);
    for (int64_t x = 0; x < row.pixels; x += chunk) {
      const int pixels = static_cast<int>(std::min(chunk, row.pixels - x));
      const Window window{row.segments + first,
                          x * pixel_step() + part.group * kernel_.group_bytes, pixel_step(),
                          end - first, part.groups};
      kernel_.multiply(window, weights, vectors, pixels, sums + x * pitch, pitch, accumulate);
    }
  }

  // All there is of the sum at once: a chunk's sums are finished while they are near, those of some
  // blocks in turn, so that what goes with the results to memory and comes from there, whole pixels
  // side by side, is one stream and not one for each block.
  void multiply_and_finish(int64_t first_block, int64_t end_block) {
    if (kernel_.expand != nullptr) expand_blocks(first_block, end_block);
    for (int64_t i = 0; i < row_count_; ++i) {
      const Row& row = rows_[i];
      const int64_t chunk = chunk_of(row.pixels);
      for (int64_t x = 0; x < row.pixels; x += chunk) {
        const int64_t pixels = std::min(chunk, row.pixels - x);
        for (int64_t block = first_block; block < end_block; ++block) {
          multiply_chunk(row, x, pixels, block, block - first_block);
        }
      }
    }
  }

  void multiply_chunk(const Row& row, int64_t x, int64_t pixels, int64_t block, int64_t panel) {
    const int count = vectors(block);
    const int64_t filters = int64_t{count} * kernel_.lanes;
    const int64_t segments = row.end_segment - row.first_segment;
    const Window window{row.segments + row.first_segment, x * pixel_step(), pixel_step(), segments,
                        t_.segment_groups};
    for (int64_t basis = 0; basis < p_.bases_; ++basis) {
      int32_t* sums = plane(0, basis);
      if (segments == 0) {
        std::fill_n(sums, pixels * filters, 0);  // 0.0f is all zero bits as well
        continue;
      }
      const uint8_t* weights =
          kernel_.expand != nullptr
              ? panels_ + panel * panel_bytes_ +
                    row.first_segment * t_.segment_groups * filters * kernel_.expanded_bytes
              : p_.weights_.block(basis, group_, block) +
                    row.first_segment * packed_bytes(kernel_, t_.segment_groups, filters);
      kernel_.multiply(window, weights, count, static_cast<int>(pixels), sums, filters, false);
    }
    finish_pixels(block, row, x, pixels, plane(0, 0), filters);
  }

  // All of their weights, unless they are still there from the tile before.
  void expand_blocks(int64_t first_block, int64_t end_block) {
    const bool there = panels_group_ == group_ && panels_first_ == first_block &&
                       panels_end_ >= end_block;
    if (there) return;
    for (int64_t block = first_block; block < end_block; ++block) {
      const int count = vectors(block);
      expand(t_.parts[0], weights_of(0, block, t_.parts[0], count), count,
             panels_ + (block - first_block) * panel_bytes_);
    }
    panels_group_ = group_;
    panels_first_ = first_block;
    panels_end_ = end_block;
  }

  const uint8_t* weights_of(int64_t basis, int64_t block, const Part& part, int count) const {
    const int64_t filters = int64_t{count} * kernel_.lanes;
    return p_.weights_.block(basis, group_, block) +
           part.segment * packed_bytes(kernel_, t_.segment_groups, filters) +
           packed_bytes(kernel_, part.group, filters);
  }

  void expand(const Part& part, const uint8_t* weights, int count, uint8_t* panel) {
    const int64_t filters = int64_t{count} * kernel_.lanes;
    if (part.groups % kernel_.word_groups == 0) {
      return kernel_.expand(weights, count, part.segments * part.groups, panel);
    }
    const int64_t from = packed_bytes(kernel_, part.groups, filters);
    const int64_t to = part.groups * filters * kernel_.expanded_bytes;
    for (int64_t s = 0; s < part.segments; ++s) {
      kernel_.expand(weights + s * from, count, part.groups, panel + s * to);
    }
  }

  // Sums of all rows for a block, a part of the weights at a time.
  void add_parts(int64_t block) {
    const int count = vectors(block);
    const int64_t filters = int64_t{count} * kernel_.lanes;
    for (int64_t basis = 0; basis < p_.bases_; ++basis) {
      for (const Part& part : t_.parts) {
        const uint8_t* weights = weights_of(basis, block, part, count);
        int64_t segment_bytes = packed_bytes(kernel_, part.groups, filters);
        if (kernel_.expand != nullptr) {
          expand(part, weights, count, panels_);
          weights = panels_;
          segment_bytes = part.groups * filters * kernel_.expanded_bytes;
        }
        for (int64_t i = 0; i < row_count_; ++i) {
          const Row& row = rows_[i];
          int32_t* sums = plane(0, basis) + i * t_.row_pixels * filters;
          const int64_t first = std::max(row.first_segment, part.segment);
          const int64_t end = std::min(row.end_segment, part.segment + part.segments);
          if (row.first_segment >= row.end_segment) {
            std::fill_n(sums, row.pixels * filters, 0);  // or 0.0f, as above
          } else if (first < end) {
            const bool begins = first == row.first_segment && part.group == 0;
            multiply(row, first, end, part, weights + (first - part.segment) * segment_bytes,
                     count, sums, !begins);
          }
        }
      }
    }
  }

  // Sums of all rows for some blocks, a slice of what is prepared at a time; then finishes them.
  void add_slices(int64_t first_block, int64_t end_block) {
    for (int64_t slice = 0; slice < t_.slices; ++slice) {
      const int64_t group = slice * t_.slice_groups;
      const Part part{0, 1, 0, std::min(t_.slice_groups, t_.pixel_groups - group)};
      for (int64_t i = 0; i < row_count_; ++i) {
        rows_.prepare_slice(i, slice);
      }
      for (int64_t block = first_block; block < end_block; ++block) {
        const int count = vectors(block);
        const int64_t filters = int64_t{count} * kernel_.lanes;
        int32_t* sums = plane(block - first_block, 0);
        for (int64_t i = 0; i < row_count_; ++i) {
          const Row& row = rows_[i];
          slice_step_ = part.groups * kernel_.group_bytes;
          for (int64_t basis = 0; basis < p_.bases_; ++basis) {
            const uint8_t* weights = p_.weights_.block(basis, group_, block) +
                                     packed_bytes(kernel_, group, filters);
            multiply_slice(row, part, weights, count,
                           sums + basis * plane_ + i * t_.row_pixels * filters, slice > 0);
          }
          if (slice == t_.slices - 1) finish_row(block, i, sums);
        }
      }
    }
  }

  void multiply_slice(const Row& row, const Part& part, const uint8_t* weights, int vectors,
                      int32_t* sums, bool accumulate) {
    // Prepared pixels of the last slice are shorter.
    const Window window{row.segments, 0, slice_step_, 1, part.groups};
    kernel_.multiply(window, weights, vectors, static_cast<int>(row.pixels), sums,
                     int64_t{vectors} * kernel_.lanes, accumulate);
  }

  void finish_row(int64_t block, int64_t i, const int32_t* sums) {
    const int64_t pitch = int64_t{vectors(block)} * kernel_.lanes;
    finish_pixels(block, rows_[i], 0, rows_[i].pixels, sums + i * t_.row_pixels * pitch, pitch);
  }

  void finish_pixels(int64_t block, const Row& row, int64_t x, int64_t pixels,
                     const int32_t* sums, int64_t pitch) {
    const int64_t in_group = block * t_.block_filters;
    const int64_t channel = group_ * g_.group_filters + in_group;
    Finish finish = p_.finishing_.at(batch_, row.first_pixel + x, channel);
    finish.sums = sums;
    finish.sums_pitch = pitch;
    finish.basis_pitch = plane_;
    finish.integer = kernel_.input == BP_U8;
    finish.doubled = kernel_.sums_of_ones ? 1 : 0;
    finish.window_sums = row.window_sums == nullptr ? nullptr : row.window_sums + x;
    finish.offset = row.offset == nullptr ? nullptr : row.offset + channel;
    finish.offset_pitch = g_.filters;
    p_.finishing_(finish, pixels, std::min(t_.block_filters, g_.group_filters - in_group));
  }

  const Product& p_;
  const Geometry& g_;
  const Tiling& t_;
  const ProductKernel& kernel_;
  Batch batch_;
  TileRows rows_;

  int32_t* sums_;  // or float32
  int64_t plane_;  // numbers of sums for a basis
  uint8_t* panels_;  // expanded weights
  int64_t panel_bytes_;

  int64_t group_ = 0, row_count_ = 0;
  int64_t slice_step_ = 0;
  int64_t panels_group_ = -1, panels_first_ = 0, panels_end_ = 0;  // what panels_ hold
};

void Product::run(const Batch& batch, Team& team, int member, uint8_t* scratch) const {
  Layout layout(scratch);
  Worker(*this, batch, layout).work(team, member);
}

int64_t Product::scratch_bytes() const {
  Layout layout;
  const Batch none{};
  Worker worker(*this, none, layout);
  return layout.bytes();
}

}  // namespace bitpress
