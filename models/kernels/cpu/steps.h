// Makers of all steps but products. The steps they are given have been checked.
#pragma once
#include <memory>

#include "finishing.h"
#include "step.h"

namespace bitpress {

struct StepSlots {
  Slot in0, in1, out_f32, out_u8;
  // The one value that a step writes.
  const Slot& out() const { return out_f32.given() ? out_f32 : out_u8; }
};

std::unique_ptr<Step> make_input(const KernelSet& set, const bp_step& step,
                                 const StepSlots& slots);
std::unique_ptr<Step> make_output(const StepSlots& slots);
std::unique_ptr<Step> make_copy(const bp_step& step, const StepSlots& slots);
std::unique_ptr<Step> make_zero(const bp_step& step, const StepSlots& slots);
std::unique_ptr<Step> make_transpose(const StepSlots& slots);
std::unique_ptr<Step> make_elementwise(const KernelSet& set, const bp_step& step,
                                       const StepSlots& slots);
std::unique_ptr<Step> make_sign(const bp_step& step, const StepSlots& slots);
std::unique_ptr<Step> make_max_pool(const KernelSet& set, const bp_step& step,
                                    const StepSlots& slots);
std::unique_ptr<Step> make_avg_pool(const KernelSet& set, const bp_step& step,
                                    const StepSlots& slots);

}  // namespace bitpress
