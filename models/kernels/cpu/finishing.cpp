#include "finishing.h"

#include <string.h>

namespace bitpress {

Finishing::Finishing(const KernelSet& set, const bp_step& step, int64_t channels, Slot residual,
                     Slot out_f32, Slot out_u8)
    : set_(set), channels_(channels), residual_(residual), out_f32_(out_f32), out_u8_(out_u8) {
  const int64_t bases = step.kind == BP_PRODUCT ? step.bases : 1;
  const float* base_scale = step.kind == BP_PRODUCT ? step.base_scale : nullptr;
  const float* slope = step.activation == BP_PRELU ? step.slope : nullptr;
  const auto place = [&](Layout layout) {
    const auto take = [&](const float* from, int64_t planes) -> const float* {
      if (from == nullptr) return nullptr;
      float* to = layout.take<float>(planes * channels + kSpareSums);
      if (to != nullptr) memcpy(to, from, static_cast<size_t>(planes * channels) * sizeof(float));
      return to;
    };
    finish_.gain = take(step.gain, 1);
    finish_.shift = take(step.shift, 1);
    finish_.slope = take(slope, 1);
    finish_.base_scale = take(base_scale, bases);
    return layout.bytes();
  };
  arrays_ = Memory(place(Layout()));
  if (arrays_.bytes() != 0) place(Layout(arrays_.data()));
  finish_.bases = bases;
  finish_.base_scale_pitch = channels;
  finish_.activation = step.activation;
  finish_.activation_low = step.activation_low;
  finish_.activation_high = step.activation_high;
  finish_.pitch = channels;
  finish_.step = 1;
  finish_.bits = 8;
  if (!out_u8.given()) return;  // a step that makes no codes may say anything about them
  finish_.low = step.low;
  finish_.step = step.step;
  finish_.bits = step.bits;
}

Finish Finishing::at(const Batch& batch, int64_t pixel, int64_t channel) const {
  Finish finish = finish_;
  const int64_t number = pixel * channels_ + channel;
  if (finish.gain != nullptr) finish.gain += channel;
  if (finish.shift != nullptr) finish.shift += channel;
  if (finish.slope != nullptr) finish.slope += channel;
  if (finish.base_scale != nullptr) finish.base_scale += channel;
  if (residual_.given()) finish.residual = residual_.at<const float>(batch) + number;
  if (out_f32_.given()) finish.out_f32 = out_f32_.at<float>(batch) + number;
  if (out_u8_.given()) finish.out_u8 = out_u8_.at<uint8_t>(batch) + number;
  return finish;
}

}  // namespace bitpress
