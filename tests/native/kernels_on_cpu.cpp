// One of the CUDA kernels as a function of the C language. What a kernel is compiled with on a
// device are variables here, but for how it divides the work: so one build serves every layer.
//
// Built with -DRUNS_TENSOR_PRODUCT and the constants in capitals of configurations.py; or else it is
// the kernel that needs no tensor cores.
#include "device_on_cpu.h"

#define CONSTANTS(EACH)                                                                           \
  EACH(IN_ROWS) EACH(IN_COLUMNS) EACH(IN_WORDS) EACH(OUT_ROWS) EACH(OUT_COLUMNS) EACH(OUT_WORDS)  \
  EACH(KERNEL_ROWS) EACH(KERNEL_COLUMNS) EACH(STRIDE_ROWS) EACH(STRIDE_COLUMNS)                   \
  EACH(PADDING_ROWS) EACH(PADDING_COLUMNS) EACH(DILATION_ROWS) EACH(DILATION_COLUMNS)             \
  EACH(PADDING_OF_ONES) EACH(TAPS) EACH(TAP_WORDS) EACH(GROUP_CHANNELS) EACH(GROUP_FILTERS)       \
  EACH(FILTERS) EACH(BASES) EACH(COPY_WORDS) EACH(HAS_BASE_SCALE) EACH(HAS_AFFINE) EACH(RESIDUAL) \
  EACH(ACTIVATION) EACH(KEPT) EACH(HAS_LEVELS) EACH(LEVEL_BITS) EACH(HAS_THRESHOLD)
#define REAL_CONSTANTS(EACH) \
  EACH(ACTIVATION_LOW) EACH(ACTIVATION_HIGH) EACH(LEVEL_LOW) EACH(LEVEL_STEP)

namespace {

#define AS_INT(name) int name;
#define AS_FLOAT(name) float name;
CONSTANTS(AS_INT)
REAL_CONSTANTS(AS_FLOAT)

#include "finishing.cu"
#if defined(RUNS_TENSOR_PRODUCT)
#include "tensor_counting.cu"
#include "tensor_finishing.cu"
#include "tensor_product.cu"
#else
#include "popcount_product.cu"
#endif

struct Grid {
  int across, down, deep;
  uint64_t seed;
  int late_copies;
};

void run_all(const Grid& grid, std::function<void()> kernel) {
  device::run_grid(grid.across, grid.down, grid.deep, THREADS, grid.seed, grid.late_copies != 0,
                   std::move(kernel));
}

}  // namespace

extern "C" {

// Returns whether there is a constant of that name.
int set_constant(const char* name, double value) {
#define SET(constant)                                              \
  if (std::strcmp(name, #constant) == 0) {                         \
    constant = static_cast<decltype(constant)>(value);             \
    return 1;                                                      \
  }
  CONSTANTS(SET)
  REAL_CONSTANTS(SET)
  return 0;
}

int threads() { return THREADS; }

#if defined(RUNS_TENSOR_PRODUCT)
void run(const Grid* grid, const Word* x, const Word* weights, const int* tap_sums,
         const float* base_scale, const float* affine, const float* slope, const float* threshold,
         const void* residual, void* out, signed char* levels, int pixels) {
  run_all(*grid, [=] {
    tensor_product(x, weights, tap_sums, base_scale, affine, slope, threshold, residual, out,
                   levels, pixels);
  });
}
#else
void run(const Grid* grid, const Word* x, const Word* weights, const float* base_scale,
         const float* affine, const float* slope, const float* threshold, const void* residual,
         void* out, signed char* levels, int pixels) {
  run_all(*grid, [=] {
    popcount_product(x, weights, base_scale, affine, slope, threshold, residual, out, levels,
                     pixels);
  });
}
#endif
}
