// How fast a kernel's loop is on data in the first-level cache. Included by each instruction set's
// source file, with internal linkage: what one of them compiles is never run by another.
#pragma once
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../kernel_set.h"

namespace bitpress {
namespace {

double seconds_now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// The best of several short runs, which others on the machine disturb least. Windows overlap, as they
// do in a convolution, so that many groups fit the cache.
double measured_ceiling(const ProductKernel& kernel) {
  constexpr int64_t kMostGroups = 160, kPanelBytes = 20 << 10, kGroupsApart = 4;
  constexpr int kRuns = 60, kCalls = 10;
  const int filters = kernel.max_vectors * kernel.lanes;
  const int weight_bytes = kernel.bits ? kernel.expanded_bytes : 4;
  int64_t groups = kMostGroups;
  if (groups * weight_bytes * filters > kPanelBytes) groups = kPanelBytes / (weight_bytes * filters);
  groups = (groups + kernel.word_groups - 1) / kernel.word_groups * kernel.word_groups;

  // Zero bytes are valid tables and weights of every kernel.
  const size_t row_bytes =
      static_cast<size_t>(kMaxPixels * kGroupsApart + groups + kernel.word_groups) *
      kernel.group_bytes;
  const size_t panel_bytes = static_cast<size_t>(groups * filters) * 8;
  const size_t sums_bytes = static_cast<size_t>(kMaxPixels * filters) * 4;
  void *row = nullptr, *panel = nullptr, *sums = nullptr;
  double best = 0.0;
  if (posix_memalign(&row, kAlignment, row_bytes) == 0 &&
      posix_memalign(&panel, kAlignment, panel_bytes) == 0 &&
      posix_memalign(&sums, kAlignment, sums_bytes) == 0) {
    memset(row, 0, row_bytes);
    memset(panel, 0, panel_bytes);
    const uint8_t* rows[] = {static_cast<const uint8_t*>(row)};
    const Window window = {rows, 0, kGroupsApart * kernel.group_bytes, 1, groups};
    const double macs = static_cast<double>(kCalls * kMaxPixels * groups) * kernel.group_channels *
                        filters;
    for (int run = 0; run < kRuns; run++) {
      const double start = seconds_now();
      for (int call = 0; call < kCalls; call++) {
        kernel.multiply(window, panel, kernel.max_vectors, kMaxPixels, sums, filters, false);
      }
      const double rate = macs / (seconds_now() - start);
      if (rate > best) best = rate;
    }
  }
  free(row);
  free(panel);
  free(sums);
  return best;
}

double ceiling_of(const ProductKernel* const* kernels, const char* name) {
  for (; *kernels; kernels++) {
    if (strcmp((*kernels)->name, name) == 0) return measured_ceiling(**kernels);
  }
  return 0.0;
}

}  // namespace
}  // namespace bitpress
