// How fast a kernel's loop is on data in the first-level cache.
#include "ceiling.h"

#include <string.h>

#include <algorithm>

#include "geometry.h"
#include "memory.h"
#include "rounding.h"
#include "waiting.h"

namespace bitpress {
namespace {

// Windows overlap, as they do in a convolution, so that many groups fit the cache.
constexpr int64_t kMostGroups = 160, kPanelBytes = 20 << 10, kGroupsApart = 4;
// The best of several short runs, which others on the machine disturb least.
constexpr int kRuns = 60, kCalls = 10;

// Zero bytes are valid tables and weights of every kernel.
double ceiling_of(const ProductKernel& kernel) {
  const int64_t filters = int64_t{kernel.max_vectors} * kernel.lanes;
  const int64_t filter_bytes = filters * (kernel.bits ? kernel.expanded_bytes : 4);
  int64_t groups = kMostGroups;
  if (groups * filter_bytes > kPanelBytes) groups = kPanelBytes / filter_bytes;
  groups = round_up(groups, kernel.word_groups);

  const Memory row((kMaxPixels * kGroupsApart + groups) * kernel.group_bytes);
  const Memory panel(std::max(groups * filter_bytes, packed_bytes(kernel, groups, filters)));
  const Memory sums(kMaxPixels * filters * 4);
  const uint8_t* rows[] = {row.data()};
  const Window window = {rows, 0, kGroupsApart * kernel.group_bytes, 1, groups};
  const double macs = static_cast<double>(kCalls * kMaxPixels * groups * filters) *
                      static_cast<double>(kernel.group_channels);
  const UsualRounding rounding;
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    const int64_t begin = nanoseconds_now();
    for (int call = 0; call < kCalls; ++call) {
      kernel.multiply(window, panel.data(), kernel.max_vectors, kMaxPixels, sums.data(), filters,
                      false);
    }
    const int64_t took = std::max<int64_t>(nanoseconds_now() - begin, 1);
    best = std::max(best, macs / (1e-9 * static_cast<double>(took)));
  }
  return best;
}

}  // namespace

double ceiling(const KernelSet& set, const char* name) {
  for (const ProductKernel* const* kernel = set.products; *kernel != nullptr; ++kernel) {
    if (strcmp((*kernel)->name, name) == 0) return ceiling_of(**kernel);
  }
  return 0;
}

}  // namespace bitpress
