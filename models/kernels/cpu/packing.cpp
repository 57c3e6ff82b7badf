#include "packing.h"

#include <string.h>

#include <algorithm>
#include <map>
#include <utility>

namespace bitpress {
namespace {

// `count` bits, at most 32, from bit `at` on; 8 bytes from there must be readable.
inline uint32_t bits_at(const uint8_t* row, int64_t at, int64_t count) {
  uint64_t bits;
  memcpy(&bits, row + at / 8, sizeof(bits));  // x86-64 and AArch64 alike are little-endian
  bits = bits >> (at % 8);
  return static_cast<uint32_t>(bits & ((UINT64_C(1) << count) - 1));
}

// Word `index` of an array of words of 4, 8, 16 or 32 bits, zero so far.
inline void set_word(uint8_t* words, int word_bits, int64_t index, uint32_t word) {
  switch (word_bits) {
    case 4:
      words[index / 2] = static_cast<uint8_t>(words[index / 2] | word << (index % 2 * 4));
      break;
    case 8:
      words[index] = static_cast<uint8_t>(word);
      break;
    case 16: {
      const auto half = static_cast<uint16_t>(word);
      memcpy(words + index * 2, &half, sizeof(half));
      break;
    }
    default:
      memcpy(words + index * 4, &word, sizeof(word));
  }
}

// The words of filter `f` of a block of `filters`.
void pack_filter(const Tiling& t, const ProductKernel& kernel, const uint8_t* row, int64_t filters,
                 int64_t f, uint8_t* block) {
  const int64_t words = ceil_div(t.segment_groups, kernel.word_groups);
  int64_t tap_bit = 0;  // first of the tap
  for (int64_t s = 0; s < t.segments; ++s) {
    int64_t group = 0;  // of the segment
    uint32_t word = 0;
    const auto flush = [&](int64_t index) {
      set_word(block, kernel.word_bits, (s * words + index) * filters + f, word);
      word = 0;
    };
    for (int64_t tap = 0; tap < t.taps; ++tap, tap_bit += t.pixel_channels) {
      for (int64_t c = 0; c < t.pixel_channels; c += kernel.group_channels, ++group) {
        const int64_t count = std::min<int64_t>(kernel.group_channels, t.pixel_channels - c);
        const int64_t place = group % kernel.word_groups;
        word |= bits_at(row, tap_bit + c, count) << (place * kernel.group_channels);
        if (place == kernel.word_groups - 1) flush(group / kernel.word_groups);
      }
    }
    if (group % kernel.word_groups != 0) flush(group / kernel.word_groups);
  }
}

int32_t ones(const uint8_t* row, int64_t begin, int64_t end) {
  int64_t count = 0;
  for (int64_t at = begin; at < end; at += 32) {
    count += __builtin_popcount(bits_at(row, at, std::min<int64_t>(32, end - at)));
  }
  return static_cast<int32_t>(count);
}

// A row of packed bits with room behind it, for reading words across its end.
class BitRow {
 public:
  explicit BitRow(int64_t bytes) : bytes_(static_cast<size_t>(bytes)), row_(bytes_ + 8) {}
  const uint8_t* load(const uint8_t* from) {
    memcpy(row_.data(), from, bytes_);
    return row_.data();
  }

 private:
  size_t bytes_;
  std::vector<uint8_t> row_;
};

}  // namespace

PackedWeights::PackedWeights(const Geometry& g, const Tiling& t, const ProductKernel& kernel,
                             const uint8_t* packed_bits, int64_t row_bytes, const float* weight,
                             int64_t bases)
    : groups_(g.groups), blocks_(t.blocks) {
  const int64_t segment_bytes = packed_bytes(kernel, t.segment_groups, t.block_filters);
  block_bytes_ = round_up(bytes_of(t.segments, segment_bytes), kAlignment);
  memory_ = Memory(bytes_of(bytes_of(bases, g.groups, t.blocks), block_bytes_));
  BitRow bit_row(kernel.bits ? row_bytes : 0);
  for (int64_t basis = 0; basis < bases; ++basis) {
    for (int64_t n = 0; n < g.filters; ++n) {
      const int64_t group = n / g.group_filters, in_group = n % g.group_filters;
      const int64_t index = in_group / t.block_filters, f = in_group % t.block_filters;
      const int64_t filters =
          int64_t{vectors_of(kernel, g.group_filters - index * t.block_filters)} * kernel.lanes;
      uint8_t* out = memory_.data() + ((basis * groups_ + group) * blocks_ + index) * block_bytes_;
      if (kernel.bits) {
        const uint8_t* row = bit_row.load(packed_bits + (basis * g.filters + n) * row_bytes);
        pack_filter(t, kernel, row, filters, f, out);
      } else {
        const float* row = weight + n * g.weights();
        float* numbers = reinterpret_cast<float*>(out) + f;
        for (int64_t i = 0; i < g.weights(); ++i) numbers[i * filters] = row[i];
      }
    }
  }
}

KernelRows kernel_rows_inside(const Geometry& g, int64_t row) {
  const int64_t top = row * g.stride_rows - g.padding_rows;
  const int64_t first = top >= 0 ? 0 : ceil_div(-top, g.dilation_rows);
  const int64_t room = g.height - top;  // rows of the map from `top` on
  const int64_t last = room <= 0 ? 0 : ceil_div(room, g.dilation_rows);
  const int64_t end = std::min(last, g.kernel_rows);
  return {std::min(first, end), end};
}

ZeroOffsets::ZeroOffsets(const Geometry& g, const uint8_t* packed_bits, int64_t row_bytes,
                         int64_t bases, int32_t zero) {
  if (zero == 0) return;
  variant_ = bases * g.filters;
  std::map<std::pair<int64_t, int64_t>, int32_t> known;
  for (int64_t row = 0; row < g.rows; ++row) {
    const KernelRows inside = kernel_rows_inside(g, row);
    const auto next = static_cast<int32_t>(known.size());
    variants_.push_back(known.try_emplace({inside.first, inside.last}, next).first->second);
  }
  offsets_.resize(known.size() * static_cast<size_t>(variant_));
  const int64_t row_weights = g.kernel_columns * g.group_channels;
  BitRow bit_row(row_bytes);
  for (int64_t i = 0; i < variant_; ++i) {
    const uint8_t* row = bit_row.load(packed_bits + i * row_bytes);
    for (const auto& [inside, variant] : known) {
      const int64_t begin = inside.first * row_weights, end = inside.second * row_weights;
      const auto sum = static_cast<uint32_t>(2 * int64_t{ones(row, begin, end)} - (end - begin));
      offsets_[static_cast<size_t>(variant * variant_ + i)] =
          static_cast<int32_t>(sum * static_cast<uint32_t>(zero));
    }
  }
}

}  // namespace bitpress
