// A program under construction: values, steps, and the arrays that the steps point to.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "abi.h"

namespace bitpress::check {

constexpr int kNone = -1;

class Draft {
 public:
  // No two values share memory, and behind each lies a guard: zeros that no step may touch.
  int add_value(int64_t channels, int64_t height, int64_t width, int32_t type);
  bp_step& add_step(int32_t kind, int in0 = kNone);

  // A copy of a float32 value, which a later step may overwrite.
  int add_copy(int original);
  // Lets `value` lie where `copy` does, whose last reader writes it.
  void take_place(int value, int copy) { values_[value].offset = values_[copy].offset; }
  // Copies and what they are copies of.
  struct Copied {
    int copy, original;
  };
  const std::vector<Copied>& copies() const { return copies_; }

  // Arrays of just the size given, so that a sanitizer sees every access behind their ends.
  const float* keep(std::vector<float> array);
  const uint8_t* keep(std::vector<uint8_t> array);

  const std::vector<bp_value>& values() const { return values_; }
  const std::vector<bp_step>& steps() const { return steps_; }
  std::vector<bp_step>& steps() { return steps_; }
  const std::vector<int>& guards() const { return guards_; }
  bool is_guard(int value) const;

  // What to hand over; valid until the draft changes.
  bp_program_spec spec(int32_t isa, int threads, int64_t max_images) const;

  std::string describe() const;

 private:
  int place(const bp_value& value);

  std::vector<bp_value> values_;
  std::vector<bp_step> steps_;
  std::vector<int> guards_;
  std::vector<Copied> copies_;
  std::vector<std::vector<float>> floats_;
  std::vector<std::vector<uint8_t>> bytes_;
  int64_t arena_bytes_ = 0;
};

int64_t elements(const bp_value& value);
const char* kind_name(int32_t kind);

// Steps that make one vector of all values, guards last, and hand it to the output: so that one run
// shows all that was computed. Returns where each value begins in it; the values are numbered as in
// the draft before the call, each in the order C, H, W.
std::vector<int64_t> show_all_values(Draft& draft);

}  // namespace bitpress::check
