#include "program.h"

#include <algorithm>
#include <mutex>
#include <string>

#include "checks.h"
#include "fences.h"
#include "product.h"
#include "rounding.h"

namespace bitpress {
namespace {

// A meeting of all threads costs less than a microsecond where they spin; below this, a step is
// done by one of them.
constexpr double kWorthSharing = 4000;  // nanoseconds

Slot slot_of(const bp_program_spec& spec, int32_t index) {
  if (index < 0) return Slot();
  const bp_value& value = spec.values[index];
  return {value.offset, value.channels, value.height, value.width, value.type == BP_U8};
}

std::unique_ptr<Step> make_product(const KernelSet& set, const bp_step& step, int64_t number,
                                   const bp_value& in0, const StepSlots& slots) {
  const std::vector<const ProductKernel*> kernels = candidates(set, step, in0);
  const std::string which = "Step " + std::to_string(number) + ": ";
  if (kernels.empty()) {
    throw Refusal(BP_UNSUPPORTED, which + "no kernel of " + set.name + " computes this product.");
  }
  if (step.kernel < -1 || step.kernel >= static_cast<int64_t>(kernels.size())) {
    throw Refusal(BP_INVALID, which + "there is no kernel " + std::to_string(step.kernel) + ".");
  }
  return std::make_unique<Product>(
      step, in0, *kernels[static_cast<size_t>(std::max(step.kernel, 0))], slots.in0,
      Finishing(set, step, step.filters, slots.in1, slots.out_f32, slots.out_u8));
}

StepSlots slots_of(const bp_program_spec& spec, const bp_step& step) {
  return {slot_of(spec, step.in0), slot_of(spec, step.in1), slot_of(spec, step.out_f32),
          slot_of(spec, step.out_u8)};
}

std::unique_ptr<Step> make_step(const KernelSet& set, const bp_program_spec& spec,
                                int64_t number, const StepSlots& slots) {
  const bp_step& step = spec.steps[number];
  switch (step.kind) {
    case BP_INPUT:
      return make_input(set, step, slots);
    case BP_PRODUCT:
      return make_product(set, step, number, spec.values[step.in0], slots);
    case BP_MAX_POOL:
      return make_max_pool(set, step, slots);
    case BP_AVG_POOL:
      return make_avg_pool(set, step, slots);
    case BP_ELEMENTWISE:
      return make_elementwise(set, step, slots);
    case BP_SIGN:
      return make_sign(step, slots);
    case BP_COPY:
      return make_copy(step, slots);
    case BP_ZERO:
      return make_zero(step, slots);
    case BP_TRANSPOSE:
      return make_transpose(slots);
    default:
      return make_output(slots);
  }
}

const KernelSet& set_of(const bp_program_spec& spec) {
  const KernelSet* set = kernel_set(spec.isa);
  if (set == nullptr) {
    throw Refusal(BP_UNSUPPORTED, "The instruction set " + std::to_string(spec.isa) +
                                      " is not in this build or cannot run here.");
  }
  return *set;
}

}  // namespace

Program::Program(const bp_program_spec& spec)
    : threads_(spec.threads),
      max_images_(spec.max_images),
      arena_image_bytes_(spec.arena_bytes),
      team_(std::clamp(spec.threads, 1, 1024)) {
  const KernelSet& set = set_of(spec);
  check_program(spec);
  for (int64_t i = 0; i < spec.step_count; ++i) {
    slots_.push_back(slots_of(spec, spec.steps[i]));
    steps_.push_back(make_step(set, spec, i, slots_.back()));
    const Step& made = *steps_.back();
    if (made.units(max_images_) > Team::kMaxUnits) {
      throw Refusal(BP_UNSUPPORTED, "Step " + std::to_string(i) +
                                        ": the largest batch is too large to be shared out.");
    }
    scratch_thread_bytes_ =
        std::max(scratch_thread_bytes_, round_up(made.scratch_bytes(), kAlignment));
    const bp_step& step = spec.steps[i];
    if (step.kind == BP_INPUT) {
      x_numbers_ = slot_of(spec, std::max(step.out_f32, step.out_u8)).numbers();
    }
    if (step.kind == BP_OUTPUT) y_numbers_ = slot_of(spec, step.in0).numbers();
  }
  arena_ = Memory(arena_image_bytes_ * max_images_);
  fence(arena_.data(), arena_.bytes());
  scratch_ = Memory(bytes_of(scratch_thread_bytes_, threads_));
}

void Program::run(const float* x, int64_t images, float* y) {
  const std::lock_guard<RunMutex> lock(mutex_);
  for (int64_t done = 0; done < images; done += max_images_) {
    batch_ = {std::min(max_images_, images - done), arena_.data(), x + done * x_numbers_,
              y + done * y_numbers_};
    run_in_pool(*this, threads_);
    if (kFences) close(slots_.back());
  }
}

// Each step has the values that it speaks of, and of the arena nothing else.
void Program::open(const StepSlots& slots) const {
  for (const Slot& slot : {slots.in0, slots.in1, slots.out_f32, slots.out_u8}) {
    if (slot.given()) take_down_fence(slot.at<uint8_t>(batch_), batch_.images * slot.bytes());
  }
}

void Program::close(const StepSlots& slots) const {
  for (const Slot& slot : {slots.in0, slots.in1, slots.out_f32, slots.out_u8}) {
    if (slot.given()) fence(slot.at<uint8_t>(batch_), batch_.images * slot.bytes());
  }
}

void Program::begin(int members) noexcept {
  team_.gather(members);
  hand_out(0);
}

void Program::work(int member) noexcept {
  const UsualRounding rounding;
  uint8_t* scratch = scratch_.data() + member * scratch_thread_bytes_;
  for (size_t i = 0; i < steps_.size(); ++i) {
    if (i > 0) team_.meet(member, [&] { hand_out(i); });
    steps_[i]->run(batch_, team_, member, scratch);
  }
}

void Program::hand_out(size_t step) {
  if (kFences) {
    if (step > 0) close(slots_[step - 1]);
    open(slots_[step]);
  }
  const Step& next = *steps_[step];
  const int64_t units = next.units(batch_.images);
  const double cost = next.unit_cost() * static_cast<double>(units);
  team_.hand_out(units, units > 1 && cost > kWorthSharing, next.stealable());
}

int64_t Program::weight_bytes() const {
  int64_t bytes = 0;
  for (const auto& step : steps_) bytes += step->weight_bytes();
  return bytes;
}

int64_t Program::arena_bytes(int64_t images) const {
  return arena_image_bytes_ * std::clamp<int64_t>(images, 0, max_images_);
}

}  // namespace bitpress
