// Steps that look at each number by itself.
#include <string.h>

#include <algorithm>
#include <utility>

#include "steps.h"

namespace bitpress {
namespace {

// Numbers at a time: what is read, made on the way and written stays in the first-level cache.
constexpr int64_t kNumbers = 2048;
constexpr double kNanosecondsPerNumber = 0.15;

// Pixels at a time; of a map whose channels are all treated alike, a *pixel* is a stretch of
// kNumbers numbers, however many pixels that is.
class Elementwise final : public Step {
 public:
  Elementwise(const KernelSet& set, const bp_step& step, const StepSlots& slots)
      : set_(set), in0_(slots.in0), in_low_(step.in_low), in_step_(step.in_step),
        finishing_(set, step, slots.in0.channels, slots.in1, slots.out_f32, slots.out_u8) {
    pixels_ = std::max<int64_t>(1, kNumbers / in0_.channels);
  }

  int64_t units(int64_t images) const override {
    if (finishing_.uniform()) return ceil_div(images * in0_.numbers(), kNumbers);
    return ceil_div(images * in0_.pixels(), pixels_);
  }
  double unit_cost() const override { return kNumbers * kNanosecondsPerNumber; }
  int64_t scratch_bytes() const override {
    Layout layout;
    take_numbers(layout);
    return layout.bytes();
  }
  int64_t weight_bytes() const override { return finishing_.bytes(); }

  void run(const Batch& batch, Team& team, int member, uint8_t* scratch) const override {
    const int64_t all = units(batch.images);
    Layout layout(scratch);
    float* numbers = take_numbers(layout);
    for (;;) {
      const Stretch taken = team.take(member, 1, all, all);
      if (taken.empty()) return;
      for (int64_t unit = taken.begin; unit < taken.end; ++unit) {
        if (finishing_.uniform()) {
          const int64_t first = unit * kNumbers;
          const int64_t count = std::min(kNumbers, batch.images * in0_.numbers() - first);
          // As one pixel of `count` channels.
          finish(batch, numbers, first, finishing_.at(batch, 0, first), 1, count);
        } else {
          const int64_t first = unit * pixels_;
          const int64_t count = std::min(pixels_, batch.images * in0_.pixels() - first);
          finish(batch, numbers, first * in0_.channels, finishing_.at(batch, first, 0), count,
                 in0_.channels);
        }
      }
    }
  }

 private:
  float* take_numbers(Layout& layout) const {
    return layout.take<float>(std::max(kNumbers, pixels_ * in0_.channels));
  }

  void finish(const Batch& batch, float* numbers, int64_t first, Finish finish, int64_t pixels,
              int64_t channels) const {
    if (in0_.codes) {
      set_.numbers_of_codes(in0_.at<const uint8_t>(batch) + first, in_step_, in_low_, numbers,
                            pixels * channels);
      finish.sums = numbers;
    } else {
      finish.sums = in0_.at<const float>(batch) + first;
    }
    finish.sums_pitch = channels;
    finishing_(finish, pixels, channels);
  }

  const KernelSet& set_;
  Slot in0_;
  float in_low_, in_step_;
  Finishing finishing_;
  int64_t pixels_;
};

class Sign final : public Step {
 public:
  Sign(const bp_step& step, const StepSlots& slots)
      : in_(slots.in0), out_(slots.out_f32),
        arrays_(bytes_of(2 * in_.channels, sizeof(float))) {
    gain_ = reinterpret_cast<float*>(arrays_.data());
    shift_ = gain_ + in_.channels;
    for (int64_t c = 0; c < in_.channels; ++c) {
      gain_[c] = step.gain == nullptr ? 1.0f : step.gain[c];
      shift_[c] = step.shift == nullptr ? 0.0f : step.shift[c];
    }
  }

  int64_t units(int64_t images) const override { return images * in_.height; }
  double unit_cost() const override {
    return static_cast<double>(in_.width * in_.channels) * kNanosecondsPerNumber;
  }
  int64_t weight_bytes() const override { return arrays_.bytes(); }

  void run(const Batch& batch, Team& team, int member, uint8_t*) const override {
    const int64_t all = units(batch.images);
    for (;;) {
      const Stretch taken = team.take(member, 1, all, all);
      if (taken.empty()) return;
      const int64_t begin = taken.begin * in_.width, end = taken.end * in_.width;
      for (int64_t pixel = begin; pixel < end; ++pixel) {
        const float* x = in_.at<const float>(batch) + pixel * in_.channels;
        float* y = out_.at<float>(batch) + pixel * in_.channels;
        for (int64_t c = 0; c < in_.channels; ++c) {
          y[c] = gain_[c] * x[c] >= shift_[c] ? 1.0f : -1.0f;
        }
      }
    }
  }

 private:
  Slot in_, out_;
  Memory arrays_;
  float* gain_;
  float* shift_;
};

}  // namespace

std::unique_ptr<Step> make_elementwise(const KernelSet& set, const bp_step& step,
                                       const StepSlots& slots) {
  return std::make_unique<Elementwise>(set, step, slots);
}

std::unique_ptr<Step> make_sign(const bp_step& step, const StepSlots& slots) {
  return std::make_unique<Sign>(step, slots);
}

}  // namespace bitpress
