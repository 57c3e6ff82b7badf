// Poolings. A unit of work is a row of results.
#include <string.h>

#include <algorithm>

#include "steps.h"

namespace bitpress {
namespace {

constexpr double kNanosecondsPerByte = 0.02;

struct PoolWindow {
  explicit PoolWindow(const bp_step& step)
      : rows(step.kernel_rows), columns(step.kernel_columns), stride_rows(step.stride_rows),
        stride_columns(step.stride_columns), padding_rows(step.padding_rows),
        padding_columns(step.padding_columns) {}

  int64_t rows, columns, stride_rows, stride_columns, padding_rows, padding_columns;
};

// What of window `index` lies inside of 0..length - 1.
Stretch inside(int64_t index, int64_t kernel, int64_t stride, int64_t padding, int64_t length) {
  const int64_t begin = index * stride - padding;
  return {std::max<int64_t>(begin, 0), std::min(begin + kernel, length)};
}

// Of what finishes a result a max pool has the codes alone; the rest of the step says nothing.
bp_step rounding_alone(bp_step step) {
  step.gain = step.shift = step.slope = nullptr;
  step.activation = BP_IDENTITY;
  return step;
}

// Inputs of one call for the greatest of them.
constexpr int64_t kInputsAtOnce = 16;

// The greatest of the window's rows first, in whole lines, and then of its columns.
class MaxPool final : public Step {
 public:
  MaxPool(const KernelSet& set, const bp_step& step, const StepSlots& slots)
      : set_(set), window_(step), in_(slots.in0), out_(slots.out()),
        finishing_(set, rounding_alone(step), slots.out().channels, Slot(), slots.out_f32,
                   slots.out_u8) {}

  int64_t units(int64_t images) const override { return images * out_.height; }
  double unit_cost() const override {
    return static_cast<double>(window_.rows) *
           static_cast<double>(in_.width * in_.channels * (in_.codes ? 1 : 4)) *
           kNanosecondsPerByte;
  }
  int64_t scratch_bytes() const override {
    Layout layout;
    take_scratch(layout);
    return layout.bytes();
  }

  void run(const Batch& batch, Team& team, int member, uint8_t* scratch) const override {
    Layout layout(scratch);
    const Scratch lines = take_scratch(layout);
    const int64_t all = units(batch.images);
    for (;;) {
      const Stretch taken = team.take(member, 1, all, all);
      if (taken.empty()) return;
      for (int64_t row = taken.begin; row < taken.end; ++row) {
        if (in_.codes) {
          pool_row(batch, row, set_.greatest_u8, lines.line,
                   out_.at<uint8_t>(batch) + row * row_numbers());
          continue;
        }
        auto* results = reinterpret_cast<float*>(lines.results);
        pool_row(batch, row, set_.greatest_f32, reinterpret_cast<float*>(lines.line), results);
        Finish finish = finishing_.at(batch, row * out_.width, 0);
        finish.sums = results;
        finish.sums_pitch = out_.channels;
        finishing_(finish, out_.width, out_.channels);
      }
    }
  }

 private:
  struct Scratch {
    uint8_t* line;
    uint8_t* results;
  };
  Scratch take_scratch(Layout& layout) const {
    const int64_t bytes = in_.codes ? 1 : 4;
    uint8_t* line = layout.take<uint8_t>(in_.width * in_.channels * bytes);
    return {line, layout.take<uint8_t>(in_.codes ? 0 : row_numbers() * bytes)};
  }
  int64_t row_numbers() const { return out_.width * out_.channels; }

  template <typename Number>
  using Greatest = void (*)(const Number* const*, int64_t, int64_t, Number*);

  // The greatest of `inputs` stretches of `count` numbers, each `pitch` after the one before.
  template <typename Number>
  static void combine(Greatest<Number> greatest, const Number* first, int64_t pitch,
                      int64_t inputs, int64_t count, Number* out) {
    const Number* at[kInputsAtOnce];
    int64_t held = 0;
    for (int64_t i = 0; i < inputs; ++i) {
      if (held == kInputsAtOnce) {
        greatest(at, held, count, out);
        at[0] = out;
        held = 1;
      }
      at[held++] = first + i * pitch;
    }
    greatest(at, held, count, out);
  }

  template <typename Number>
  void pool_row(const Batch& batch, int64_t row, Greatest<Number> greatest, Number* line,
                Number* out) const {
    const int64_t channels = in_.channels, count = in_.width * channels;
    const int64_t image = row / out_.height;
    const Stretch rows = inside(row % out_.height, window_.rows, window_.stride_rows,
                                window_.padding_rows, in_.height);
    const Number* from = in_.at<const Number>(batch) + (image * in_.height + rows.begin) * count;
    combine(greatest, from, count, rows.end - rows.begin, count, line);
    for (int64_t x = 0; x < out_.width; ++x) {
      const Stretch columns = inside(x, window_.columns, window_.stride_columns,
                                     window_.padding_columns, in_.width);
      combine(greatest, line + columns.begin * channels, channels, columns.end - columns.begin,
              channels, out + x * channels);
    }
  }

  const KernelSet& set_;
  PoolWindow window_;
  Slot in_, out_;
  Finishing finishing_;
};

// A global average reads a whole map for one pixel: its channels are cut up to be shared.
constexpr int64_t kSliceChannels = 256;

class AvgPool final : public Step {
 public:
  AvgPool(const KernelSet& set, const bp_step& step, const StepSlots& slots)
      : set_(set), window_(step), in_(slots.in0), out_(slots.out()),
        finishing_(set, step, slots.out().channels, slots.in1, slots.out_f32, slots.out_u8),
        slices_(ceil_div(in_.channels, kSliceChannels)) {}

  int64_t units(int64_t images) const override { return images * out_.height * slices_; }
  double unit_cost() const override {
    const int64_t numbers = out_.width * std::min(in_.channels, kSliceChannels);
    return static_cast<double>(window_.rows * window_.columns) * static_cast<double>(numbers) * 4 *
           kNanosecondsPerByte;
  }
  int64_t scratch_bytes() const override {
    Layout layout;
    take_sums(layout);
    return layout.bytes();
  }
  int64_t weight_bytes() const override { return finishing_.bytes(); }

  void run(const Batch& batch, Team& team, int member, uint8_t* scratch) const override {
    const int64_t all = units(batch.images);
    Layout layout(scratch);
    float* sums = take_sums(layout);
    for (;;) {
      const Stretch taken = team.take(member, 1, all, all);
      if (taken.empty()) return;
      for (int64_t unit = taken.begin; unit < taken.end; ++unit) {
        pool_row(batch, unit / slices_, unit % slices_ * kSliceChannels, sums);
      }
    }
  }

 private:
  float* take_sums(Layout& layout) const {
    return layout.take<float>(kSliceChannels);
  }

  // Added row by row and column by column from 0 on, as torch does, and then divided.
  void pool_row(const Batch& batch, int64_t row, int64_t channel, float* sums) const {
    const int64_t count = std::min(kSliceChannels, in_.channels - channel);
    const int64_t image = row / out_.height;
    const Stretch rows = inside(row % out_.height, window_.rows, window_.stride_rows,
                                window_.padding_rows, in_.height);
    const auto numbers = static_cast<float>(window_.rows * window_.columns);
    for (int64_t x = 0; x < out_.width; ++x) {
      const Stretch columns = inside(x, window_.columns, window_.stride_columns,
                                     window_.padding_columns, in_.width);
      std::fill_n(sums, count, 0.0f);
      for (int64_t y = rows.begin; y < rows.end; ++y) {
        const float* from =
            in_.at<const float>(batch) +
            ((image * in_.height + y) * in_.width + columns.begin) * in_.channels + channel;
        for (int64_t i = columns.begin; i < columns.end; ++i, from += in_.channels) {
          set_.add_f32(sums, from, count);
        }
      }
      for (int64_t c = 0; c < count; ++c) sums[c] = sums[c] / numbers;
      Finish finish = finishing_.at(batch, row * out_.width + x, channel);
      finish.sums = sums;
      finish.sums_pitch = count;
      finishing_(finish, 1, count);
    }
  }

  const KernelSet& set_;
  PoolWindow window_;
  Slot in_, out_;
  Finishing finishing_;
  int64_t slices_;
};

}  // namespace

std::unique_ptr<Step> make_max_pool(const KernelSet& set, const bp_step& step,
                                    const StepSlots& slots) {
  return std::make_unique<MaxPool>(set, step, slots);
}

std::unique_ptr<Step> make_avg_pool(const KernelSet& set, const bp_step& step,
                                    const StepSlots& slots) {
  return std::make_unique<AvgPool>(set, step, slots);
}

}  // namespace bitpress
