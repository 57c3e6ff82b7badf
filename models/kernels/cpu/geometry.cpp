#include "geometry.h"

#include <algorithm>

#include "memory.h"

namespace bitpress {
namespace {

// What the inner loop comes back to again and again must stay in the first-level cache, which is 32
// or 48 KiB and holds the other operand's stream besides.
constexpr int64_t kNearBytes = 24 << 10;
// What is prepared for a tile and then read once per block of filters must stay in the second-level
// cache, 1 MiB or more, beside weights and sums.
constexpr int64_t kFarBytes = 448 << 10;
// Sums of a tile that is added up in parts.
constexpr int64_t kSumsBytes = 256 << 10;
// Weights of blocks that are worked on in turn.
constexpr int64_t kPanelsBytes = 64 << 10;
// Where weights are expanded or are float32, as many pixels in a tile: expanding them costs what
// about eight pixels cost.
constexpr int64_t kTilePixels = 224;
// Cycles, about: to prepare a group as a table, and as a copy; to look up a vector of filters.
constexpr double kTableCycles = 8, kCopyCycles = 2, kLookupCycles = 1.3;

// Bits that are multiplied as they are packed: they are small against what is prepared, which is
// what has to stay near. Otherwise it is the weights.
bool weights_are_small(const ProductKernel& kernel) {
  return kernel.bits && kernel.expand == nullptr;
}

// Bytes of the weights of one group of one filter, as the inner loop reads them, times eight.
int64_t group_weight_bits(const ProductKernel& kernel) {
  if (!kernel.bits) return 32;
  if (kernel.expand != nullptr) return 8 * kernel.expanded_bytes;
  return ceil_div(kernel.word_bits, kernel.word_groups);
}

// Prepared pixels per result, of kernel_columns * channels numbers, are worth while where taps have
// so few channels that padding each to whole groups wastes more than preparing numbers repeatedly.
bool unfold_pays(const Geometry& g, const ProductKernel& kernel) {
  if (g.kernel_columns == 1) return true;
  if (g.groups != 1 || g.dilation_columns != 1) return false;
  const double prepare_cycles = kernel.tables ? kTableCycles : kCopyCycles;
  const double multiply_cycles =
      kLookupCycles * static_cast<double>(ceil_div(g.group_filters, kernel.lanes) * g.kernel_rows);
  const double fresh_rows = static_cast<double>(std::min(g.stride_rows, g.kernel_rows));
  const auto cycles = [&](int64_t prepared_pixels, int64_t pixel_groups, int64_t window_groups) {
    return prepare_cycles * fresh_rows * static_cast<double>(prepared_pixels * pixel_groups) +
           multiply_cycles * static_cast<double>(g.columns * window_groups);
  };
  const int64_t tap = ceil_div(g.group_channels, kernel.group_channels);
  const int64_t all = ceil_div(g.kernel_columns * g.group_channels, kernel.group_channels);
  const int64_t columns = (g.columns - 1) * g.stride_columns + g.kernel_columns;
  return cycles(g.columns, all, all) < cycles(columns, tap, g.kernel_columns * tap);
}

// Pixels at a time and groups at a time for look-ups of flat products: of all pairs whose tables
// stay near, that with the least traffic with the second-level cache, of weights and of sums.
void slice_look_ups(Tiling& t, const ProductKernel& kernel) {
  const double word_bytes = kernel.word_bits / 8.0;
  double best = -1;
  for (int64_t pixels : {kMaxPixels, kMaxPixels / 2, kMaxPixels / 4}) {
    const int64_t near = kNearBytes / (pixels * kernel.group_bytes);
    const int64_t most = std::max<int64_t>(near / kernel.word_groups, 1) * kernel.word_groups;
    const int64_t slices = ceil_div(t.pixel_groups, most);
    const int64_t groups =
        round_up(ceil_div(t.pixel_groups, slices), kernel.word_groups);
    const double weights = word_bytes * static_cast<double>(groups) / kernel.word_groups;
    const double sums = slices > 1 ? 8.0 * static_cast<double>(pixels) : 0;
    const double traffic = (weights + sums) / static_cast<double>(pixels * groups);
    if (best >= 0 && traffic >= best) continue;
    best = traffic;
    t.row_pixels = pixels;
    t.slice_groups = std::min(groups, t.pixel_groups);
    t.slices = ceil_div(t.pixel_groups, t.slice_groups);
  }
}

// Cuts the window's sum so that the weights of a block stay near.
void cut_into_parts(Tiling& t, const ProductKernel& kernel) {
  t.parts.clear();
  if (weights_are_small(kernel)) {
    t.parts.push_back({0, t.segments, 0, t.segment_groups});
    return;
  }
  const int64_t group_bytes = group_weight_bits(kernel) * t.block_filters / 8;
  const int64_t near = std::max<int64_t>(kNearBytes / group_bytes, kernel.word_groups);
  if (t.segment_groups <= near) {
    const int64_t each = ceil_div(t.segments, ceil_div(t.segments, near / t.segment_groups));
    for (int64_t s = 0; s < t.segments; s += each) {
      t.parts.push_back({s, std::min(each, t.segments - s), 0, t.segment_groups});
    }
    return;
  }
  const int64_t each =
      round_up(ceil_div(t.segment_groups, ceil_div(t.segment_groups, near)), kernel.word_groups);
  for (int64_t s = 0; s < t.segments; ++s) {
    for (int64_t g = 0; g < t.segment_groups; g += each) {
      t.parts.push_back({s, 1, g, std::min(each, t.segment_groups - g)});
    }
  }
}

// Prepared pixels that `pixels` results of a row need of a row of input.
int64_t prepared_for(const Geometry& g, const Tiling& t, int64_t pixels) {
  if (t.unfold) return pixels;
  return (pixels - 1) * g.stride_columns + (g.kernel_columns - 1) * g.dilation_columns + 1;
}

// Rows of input that `rows` rows of results need.
int64_t slots_for(const Geometry& g, const Tiling& t, int64_t rows) {
  if (t.flat) return rows;
  return (rows - 1) * g.stride_rows + (g.kernel_rows - 1) * g.dilation_rows + 1;
}

void size_tiles(Tiling& t, const Geometry& g, const ProductKernel& kernel, int64_t bases) {
  const int64_t groups = t.flat ? t.slice_groups : t.pixel_groups;
  const int64_t bytes = groups * kernel.group_bytes;
  if (!t.flat) {
    // Narrower rows where a whole one would not fit, but not much narrower than the halo is wide.
    const int64_t halo = prepared_for(g, t, 1) - g.stride_columns;
    const int64_t wanted = kFarBytes / (bytes_of(slots_for(g, t, 1), bytes));
    const int64_t fits = (wanted - std::max<int64_t>(halo, 0)) / (t.unfold ? 1 : g.stride_columns);
    const int64_t narrowest = std::max<int64_t>(2 * kMaxPixels, round_up(2 * halo, kMaxPixels));
    const int64_t strips =
        ceil_div(g.columns, std::min(g.columns, std::max(fits, narrowest)));
    t.row_pixels = ceil_div(g.columns, strips);
    if (strips > 1) t.row_pixels = std::min(round_up(t.row_pixels, kMaxPixels), g.columns);
  }
  t.strips = t.flat ? 1 : ceil_div(g.columns, t.row_pixels);
  t.slot_pixels = t.flat ? t.row_pixels : prepared_for(g, t, t.row_pixels);
  t.slot_bytes = round_up(bytes_of(t.slot_pixels, bytes), kAlignment);

  int64_t rows = 1;
  const int64_t most = weights_are_small(kernel)
                           ? (t.flat ? 1 : g.rows)
                           : std::max<int64_t>(1, kTilePixels / t.row_pixels);
  while (rows < most && bytes_of(slots_for(g, t, rows + 1), t.slot_bytes) <= kFarBytes &&
         bytes_of(rows + 1, t.row_pixels, bases * t.block_filters * 4) <= kSumsBytes) {
    ++rows;
  }
  t.tile_rows = rows;
  t.slots = slots_for(g, t, rows);
}

}  // namespace

int64_t windows(int64_t length, int64_t kernel, int64_t stride, int64_t padding,
                int64_t dilation) {
  const int64_t room = length + 2 * padding - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

Geometry geometry_of(const bp_step& step, const bp_value& in0) {
  Geometry g{};
  g.height = in0.height;
  g.width = in0.width;
  g.channels = in0.channels;
  g.filters = step.filters;
  g.groups = step.groups;
  g.kernel_rows = step.kernel_rows;
  g.kernel_columns = step.kernel_columns;
  g.stride_rows = step.stride_rows;
  g.stride_columns = step.stride_columns;
  g.padding_rows = step.padding_rows;
  g.padding_columns = step.padding_columns;
  g.dilation_rows = step.kernel_rows == 1 ? 1 : step.dilation_rows;
  g.dilation_columns = step.kernel_columns == 1 ? 1 : step.dilation_columns;
  g.rows = windows(g.height, g.kernel_rows, g.stride_rows, g.padding_rows, g.dilation_rows);
  g.columns =
      windows(g.width, g.kernel_columns, g.stride_columns, g.padding_columns, g.dilation_columns);
  const bool whole_map = g.kernel_rows == g.height && g.kernel_columns == g.width &&
                         g.padding_rows == 0 && g.padding_columns == 0 && g.dilation_rows == 1 &&
                         g.dilation_columns == 1 && g.groups == 1;
  if (whole_map) {
    g.channels *= g.height * g.width;
    g.height = g.width = g.kernel_rows = g.kernel_columns = 1;
    g.stride_rows = g.stride_columns = 1;
  }
  g.group_channels = g.channels / g.groups;
  g.group_filters = g.filters / g.groups;
  return g;
}

int vectors_of(const ProductKernel& kernel, int64_t filters) {
  return static_cast<int>(
      std::min<int64_t>(kernel.max_vectors, ceil_div(filters, kernel.lanes)));
}

int64_t packed_bytes(const ProductKernel& kernel, int64_t groups, int64_t filters) {
  if (!kernel.bits) return groups * filters * 4;
  return ceil_div(groups, kernel.word_groups) * filters * kernel.word_bits / 8;
}

Tiling tiling_of(const Geometry& g, const ProductKernel& kernel, int64_t bases) {
  Tiling t{};
  t.unfold = unfold_pays(g, kernel);
  t.flat = t.unfold && g.kernel_rows == 1 && g.padding_rows == 0 && g.padding_columns == 0;
  t.pixel_channels = t.unfold ? g.kernel_columns * g.group_channels : g.group_channels;
  t.pixel_groups = ceil_div(t.pixel_channels, kernel.group_channels);
  const bool separate_taps = !t.unfold && g.dilation_columns != 1;
  t.row_segments = separate_taps ? g.kernel_columns : 1;
  t.segments = g.kernel_rows * t.row_segments;
  t.taps = t.unfold || separate_taps ? 1 : g.kernel_columns;
  t.segment_groups = t.taps * t.pixel_groups;

  t.block_filters = int64_t{vectors_of(kernel, g.group_filters)} * kernel.lanes;
  t.blocks = ceil_div(g.group_filters, t.block_filters);
  t.row_pixels = kMaxPixels;
  t.slices = 1;
  t.slice_groups = t.pixel_groups;
  if (t.flat && weights_are_small(kernel)) slice_look_ups(t, kernel);
  t.pixel_bytes = t.slice_groups * kernel.group_bytes;
  cut_into_parts(t, kernel);
  size_tiles(t, g, kernel, bases);

  t.deferred = t.slices > 1 || t.parts.size() > 1 || (kernel.expand != nullptr && bases > 1);
  t.panel_bytes = 0;
  for (const Part& part : t.parts) {
    t.panel_bytes = std::max(
        t.panel_bytes, round_up(bytes_of(part.segments * part.groups,
                                         t.block_filters * kernel.expanded_bytes), kAlignment));
  }
  if (kernel.expand == nullptr) t.panel_bytes = 0;
  t.blocks_at_once = 1;
  if (t.slices > 1) {
    const int64_t block_sums = bases * t.tile_rows * t.row_pixels * t.block_filters * 4;
    t.blocks_at_once = std::clamp<int64_t>(kSumsBytes / block_sums, 1, t.blocks);
  } else if (!t.deferred && kernel.expand != nullptr) {
    t.blocks_at_once = std::clamp<int64_t>(kPanelsBytes / t.panel_bytes, 1, t.blocks);
  } else if (!t.deferred) {
    const int64_t block_weights = bases * t.segments *
                                  packed_bytes(kernel, t.segment_groups, t.block_filters);
    t.blocks_at_once = std::clamp<int64_t>(kPanelsBytes / block_weights, 1, t.blocks);
  }
  return t;
}

}  // namespace bitpress
