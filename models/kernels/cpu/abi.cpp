// The functions of abi.h. No exception leaves them.
#include "abi.h"

#include <string.h>

#include <new>
#include <string>

#include "ceiling.h"
#include "checks.h"
#include "program.h"
#include "timing.h"

struct bp_program {
  explicit bp_program(const bp_program_spec& spec) : program(spec) {}
  bitpress::Program program;
};

namespace {

constexpr int32_t kMaxRepeats = 10000;

void tell(const char* sentence, char* error, int64_t error_bytes) {
  if (error == nullptr || error_bytes <= 0) return;
  strncpy(error, sentence, static_cast<size_t>(error_bytes));
  error[error_bytes - 1] = '\0';
}

// Calls `body`, and answers with `failed` where it throws.
template <typename Result, typename Body>
Result guarded(Result failed, Body body) {
  try {
    return body();
  } catch (...) {
    return failed;
  }
}

// The kernels for a step, none where it is not a product that can be computed.
std::vector<const bitpress::ProductKernel*> kernels_of(int32_t isa, const bp_step* step,
                                                       const bp_value* in0) {
  const bitpress::KernelSet* set = bitpress::kernel_set(isa);
  if (set == nullptr || step == nullptr || in0 == nullptr) return {};
  bitpress::check_value(*in0, step->in0);
  bitpress::check_product(*step, *in0, 0);
  return bitpress::candidates(*set, *step, *in0);
}

}  // namespace

extern "C" {

int32_t bp_abi_version(void) { return BP_ABI_VERSION; }

int64_t bp_abi_sizes(void) {
  return static_cast<int64_t>(sizeof(bp_value)) | static_cast<int64_t>(sizeof(bp_step)) << 16 |
         static_cast<int64_t>(sizeof(bp_program_spec)) << 32;
}

const char* bp_isa_name(int32_t isa) {
  switch (isa) {
    case BP_PORTABLE:
      return "portable";
    case BP_AVX2:
      return "avx2";
    case BP_AVX512:
      return "avx512";
    default:
      return "";
  }
}

int32_t bp_isa_available(int32_t isa) { return bitpress::kernel_set(isa) != nullptr; }

int32_t bp_kernel_count(int32_t isa, const bp_step* step, const bp_value* in0) {
  return guarded<int32_t>(
      0, [&] { return static_cast<int32_t>(kernels_of(isa, step, in0).size()); });
}

const char* bp_kernel_name(int32_t isa, const bp_step* step, const bp_value* in0,
                           int32_t kernel) {
  return guarded<const char*>("", [&]() -> const char* {
    const auto kernels = kernels_of(isa, step, in0);
    const int32_t wanted = kernel == -1 ? 0 : kernel;
    if (wanted < 0 || wanted >= static_cast<int32_t>(kernels.size())) return "";
    return kernels[static_cast<size_t>(wanted)]->name;
  });
}

double bp_time_product(int32_t isa, int32_t threads, const bp_step* step, const bp_value* in0,
                       int32_t kernel, int64_t images, int32_t repeats) {
  return guarded<double>(-1, [&]() -> double {
    const auto kernels = kernels_of(isa, step, in0);
    const int32_t wanted = kernel == -1 ? 0 : kernel;
    if (wanted < 0 || wanted >= static_cast<int32_t>(kernels.size())) return -1;
    if (threads < 1 || threads > 1024 || images < 1 || images > 1 << 20) return -1;
    if (repeats < 1 || repeats > kMaxRepeats) return -1;
    return bitpress::time_product(*bitpress::kernel_set(isa), threads, *step, *in0,
                                  *kernels[static_cast<size_t>(wanted)], images, repeats);
  });
}

double bp_ceiling(int32_t isa, const char* kernel) {
  const bitpress::KernelSet* set = bitpress::kernel_set(isa);
  if (set == nullptr || kernel == nullptr) return 0;
  return guarded<double>(0, [&] { return bitpress::ceiling(*set, kernel); });
}

int32_t bp_program_create(const bp_program_spec* spec, bp_program** program, char* error,
                          int64_t error_bytes) {
  if (spec == nullptr || program == nullptr) {
    tell("There is no program.", error, error_bytes);
    return BP_INVALID;
  }
  *program = nullptr;
  try {
    *program = new bp_program(*spec);
    tell("", error, error_bytes);
    return BP_OK;
  } catch (const bitpress::Refusal& refusal) {
    tell(refusal.what(), error, error_bytes);
    return refusal.status;
  } catch (const std::exception&) {
    tell("There is not enough memory for the program.", error, error_bytes);
    return BP_NO_MEMORY;
  }
}

void bp_program_destroy(bp_program* program) { delete program; }

int32_t bp_program_run(bp_program* program, const float* x, int64_t images, float* y) {
  if (program == nullptr || images < 0) return BP_INVALID;
  if (images == 0) return BP_OK;
  if (x == nullptr || y == nullptr) return BP_INVALID;
  return guarded<int32_t>(BP_NO_MEMORY, [&] {
    program->program.run(x, images, y);
    return static_cast<int32_t>(BP_OK);
  });
}

int64_t bp_program_weight_bytes(const bp_program* program) {
  return program == nullptr ? 0 : program->program.weight_bytes();
}

int64_t bp_program_arena_bytes(const bp_program* program, int64_t images) {
  return program == nullptr ? 0 : program->program.arena_bytes(images);
}

int64_t bp_program_scratch_bytes(const bp_program* program) {
  return program == nullptr ? 0 : program->program.scratch_bytes();
}

}  // extern "C"
