// Which kernels can compute a product, and which of them is likely to be the fastest.
#include <algorithm>

#include "checks.h"
#include "geometry.h"
#include "program.h"

namespace bitpress {
namespace {

// Multiplications with one prepared pixel for which it pays to make tables of its channels: filters
// times taps that it serves.
constexpr int64_t kUsesOfATable = 96;

}  // namespace

std::vector<const ProductKernel*> candidates(const KernelSet& set, const bp_step& step,
                                             const bp_value& in0) {
  std::vector<const ProductKernel*> found;
  for (const ProductKernel* const* kernel = set.products; *kernel != nullptr; ++kernel) {
    const bool fits = (*kernel)->input == in0.type && (*kernel)->bits == (step.row_bytes != 0);
    if (fits) found.push_back(*kernel);
  }
  if (in0.type == BP_U8) {
    const Geometry g = geometry_of(step, in0);
    const int64_t taps = ceil_div(g.kernel_rows, g.stride_rows) *
                         ceil_div(g.kernel_columns, g.stride_columns);
    const bool tables_pay = g.group_filters * taps >= kUsesOfATable;
    std::stable_partition(found.begin(), found.end(), [&](const ProductKernel* kernel) {
      return kernel->tables == tables_pay;
    });
  }
  return found;
}

}  // namespace bitpress
