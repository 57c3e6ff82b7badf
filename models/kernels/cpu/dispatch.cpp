// Which instruction sets are built in, and which of them this processor and system can run.
#include "kernel_set.h"

namespace bitpress {
namespace {

// __builtin_cpu_supports reads CPUID and also asks the system, by XGETBV, whether it saves the
// registers.
bool runs_here(int32_t isa) {
#if defined(__x86_64__)
  if (isa == BP_AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == BP_AVX512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
  }
#endif
  return isa == BP_PORTABLE;
}

}  // namespace

const KernelSet* kernel_set(int32_t isa) {
  if (!runs_here(isa)) return nullptr;
  switch (isa) {
    case BP_PORTABLE:
      return portable_kernels();
#if defined(__x86_64__)
    case BP_AVX2:
      return avx2_kernels();
    case BP_AVX512:
      return avx512_kernels();
#endif
    default:
      return nullptr;
  }
}

}  // namespace bitpress
