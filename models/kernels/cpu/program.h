// A program: steps made ready, the arena they share, and the runs.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <vector>

#include "pool.h"
#include "step.h"
#include "steps.h"

namespace bitpress {

// The kernels that can compute a product, fastest guess first. For float32 the order follows from
// the step alone and is the rule, as each kernel rounds otherwise.
std::vector<const ProductKernel*> candidates(const KernelSet& set, const bp_step& step,
                                             const bp_value& in0);

class Program final : private Task {
 public:
  // Throws Refusal, std::bad_alloc.
  explicit Program(const bp_program_spec& spec);

  void run(const float* x, int64_t images, float* y);

  int64_t weight_bytes() const;
  int64_t arena_bytes(int64_t images) const;
  int64_t scratch_bytes() const { return scratch_.bytes(); }

 private:
  void begin(int members) noexcept override;
  void work(int member) noexcept override;
  void hand_out(size_t step);
  void open(const StepSlots& slots) const;
  void close(const StepSlots& slots) const;

  int threads_;
  int64_t max_images_, arena_image_bytes_;
  int64_t x_numbers_ = 0, y_numbers_ = 0;  // of an image
  std::vector<std::unique_ptr<Step>> steps_;
  std::vector<StepSlots> slots_;  // of each step
  int64_t scratch_thread_bytes_ = 0;
  Memory arena_, scratch_;
  Team team_;
  Batch batch_{};  // of the run under way

  RunMutex mutex_;  // one run at a time
};

}  // namespace bitpress
