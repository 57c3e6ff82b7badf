// Steps that move numbers: into and out of the program, and within it. They use memmove, as values
// of a program that its maker got wrong may overlap.
#include <string.h>

#include <algorithm>

#include "steps.h"

namespace bitpress {
namespace {

constexpr double kNanosecondsPerByte = 0.1;

// Planes of channels to channels last, a row of the map at a time; then finished. A row whose
// channels are all treated alike is finished as one pixel of many channels.
class Input final : public Step {
 public:
  Input(const KernelSet& set, const bp_step& step, const StepSlots& slots)
      : out_(slots.out()),
        finishing_(set, step, slots.out().channels, slots.in1, slots.out_f32, slots.out_u8) {}

  int64_t units(int64_t images) const override { return images * out_.height; }
  double unit_cost() const override {
    return static_cast<double>(out_.width * out_.channels * 4) * kNanosecondsPerByte;
  }
  int64_t scratch_bytes() const override {
    Layout layout;
    take_line(layout);
    return layout.bytes();
  }
  int64_t weight_bytes() const override { return finishing_.bytes(); }

  void run(const Batch& batch, Team& team, int member, uint8_t* scratch) const override {
    const int64_t all = units(batch.images), channels = out_.channels, width = out_.width;
    Layout layout(scratch);
    float* line = take_line(layout);
    for (;;) {
      const Stretch taken = team.take(member, 1, all, all);
      if (taken.empty()) return;
      for (int64_t row = taken.begin; row < taken.end; ++row) {
        const int64_t image = row / out_.height, y = row % out_.height;
        interleave(batch.x + (image * channels * out_.height + y) * width, line);
        Finish finish = finishing_.at(batch, row * width, 0);
        finish.sums = line;
        finish.sums_pitch = channels;
        if (finishing_.uniform()) {
          finishing_(finish, 1, width * channels);
        } else {
          finishing_(finish, width, channels);
        }
      }
    }
  }

 private:
  float* take_line(Layout& layout) const {
    return layout.take<float>(out_.width * out_.channels);
  }

  // A row of the map, whose channels begin at from[0], from[plane], from[2 * plane], ...
  void interleave(const float* from, float* line) const {
    const int64_t plane = out_.pixels(), width = out_.width, channels = out_.channels;
    if (channels == 3) {  // as of all pictures: worth a loop of its own
      const float* green = from + plane;
      const float* blue = green + plane;
      for (int64_t x = 0; x < width; ++x) {
        line[3 * x] = from[x];
        line[3 * x + 1] = green[x];
        line[3 * x + 2] = blue[x];
      }
      return;
    }
    for (int64_t c = 0; c < channels; ++c, from += plane) {
      for (int64_t x = 0; x < width; ++x) line[x * channels + c] = from[x];
    }
  }

  Slot out_;
  Finishing finishing_;
};

// Channels last to planes of channels, of images, to the caller or to a vector.
class Planes : public Step {
 public:
  explicit Planes(const Slot& in) : in_(in) {}

  int64_t units(int64_t images) const override { return images; }
  double unit_cost() const override {
    return static_cast<double>(in_.bytes()) * kNanosecondsPerByte;
  }

 protected:
  template <typename Number>
  void move(const Batch& batch, Team& team, int member, Number* out) const {
    const int64_t all = units(batch.images), pixels = in_.pixels(), channels = in_.channels;
    for (;;) {
      const Stretch taken = team.take(member, 1, all, all);
      if (taken.empty()) return;
      for (int64_t image = taken.begin; image < taken.end; ++image) {
        const Number* from = in_.at<const Number>(batch) + image * in_.numbers();
        Number* to = out + image * in_.numbers();
        if (pixels == 1) {
          memmove(to, from, static_cast<size_t>(channels) * sizeof(Number));
          continue;
        }
        for (int64_t p = 0; p < pixels; ++p) {
          for (int64_t c = 0; c < channels; ++c) to[c * pixels + p] = from[p * channels + c];
        }
      }
    }
  }

  Slot in_;
};

class Output final : public Planes {
 public:
  using Planes::Planes;
  void run(const Batch& batch, Team& team, int member, uint8_t*) const override {
    move<float>(batch, team, member, batch.y);
  }
};

class Transpose final : public Planes {
 public:
  explicit Transpose(const StepSlots& slots) : Planes(slots.in0), out_(slots.out()) {}
  void run(const Batch& batch, Team& team, int member, uint8_t*) const override {
    if (in_.codes) {
      move<uint8_t>(batch, team, member, out_.at<uint8_t>(batch));
    } else {
      move<float>(batch, team, member, out_.at<float>(batch));
    }
  }

 private:
  Slot out_;
};

class Copy final : public Step {
 public:
  Copy(const bp_step& step, const StepSlots& slots)
      : in_(slots.in0), out_(slots.out()), stride_rows_(step.stride_rows),
        stride_columns_(step.stride_columns), channel_(step.channel_offset) {}

  int64_t units(int64_t images) const override { return images * out_.height; }
  double unit_cost() const override {
    return static_cast<double>(out_.width * in_.channels * (in_.codes ? 1 : 4)) *
           kNanosecondsPerByte;
  }

  void run(const Batch& batch, Team& team, int member, uint8_t*) const override {
    const int64_t all = units(batch.images), number = in_.codes ? 1 : 4;
    const int64_t in_pixel = in_.channels * number, out_pixel = out_.channels * number;
    for (;;) {
      const Stretch taken = team.take(member, 1, all, all);
      if (taken.empty()) return;
      for (int64_t row = taken.begin; row < taken.end; ++row) {
        const int64_t y = row / out_.height * in_.height + row % out_.height * stride_rows_;
        const uint8_t* from = in_.at<const uint8_t>(batch) + y * in_.width * in_pixel;
        uint8_t* to = out_.at<uint8_t>(batch) + row * out_.width * out_pixel + channel_ * number;
        for (int64_t x = 0; x < out_.width; ++x) {
          memmove(to + x * out_pixel, from + x * stride_columns_ * in_pixel,
                  static_cast<size_t>(in_pixel));
        }
      }
    }
  }

 private:
  Slot in_, out_;
  int64_t stride_rows_, stride_columns_, channel_;
};

class Zero final : public Step {
 public:
  Zero(const bp_step& step, const StepSlots& slots)
      : out_(slots.out()), fill_(out_.codes ? step.in_zero : 0) {}

  int64_t units(int64_t images) const override { return images * out_.height; }
  double unit_cost() const override { return static_cast<double>(row_bytes()) * 0.03; }

  void run(const Batch& batch, Team& team, int member, uint8_t*) const override {
    const int64_t all = units(batch.images);
    for (;;) {
      const Stretch taken = team.take(member, 1, all, all);
      if (taken.empty()) return;
      memset(out_.at<uint8_t>(batch) + taken.begin * row_bytes(), fill_,
             static_cast<size_t>((taken.end - taken.begin) * row_bytes()));
    }
  }

 private:
  int64_t row_bytes() const { return out_.width * out_.channels * (out_.codes ? 1 : 4); }

  Slot out_;
  int fill_;
};

}  // namespace

std::unique_ptr<Step> make_input(const KernelSet& set, const bp_step& step,
                                 const StepSlots& slots) {
  return std::make_unique<Input>(set, step, slots);
}

std::unique_ptr<Step> make_output(const StepSlots& slots) {
  return std::make_unique<Output>(slots.in0);
}

std::unique_ptr<Step> make_transpose(const StepSlots& slots) {
  return std::make_unique<Transpose>(slots);
}

std::unique_ptr<Step> make_copy(const bp_step& step, const StepSlots& slots) {
  return std::make_unique<Copy>(step, slots);
}

std::unique_ptr<Step> make_zero(const bp_step& step, const StepSlots& slots) {
  return std::make_unique<Zero>(step, slots);
}

}  // namespace bitpress
