// A step of a program, made ready to run.
#pragma once
#include <stdint.h>

#include "kernel_set.h"
#include "memory.h"
#include "team.h"

namespace bitpress {

// What one run works on: `images` images, the arena of values, the caller's input and output.
struct Batch {
  int64_t images;
  uint8_t* arena;
  const float* x;
  float* y;
};

// A value of the arena. Default: no value.
struct Slot {
  int64_t offset = -1;
  int64_t channels = 0, height = 0, width = 0;
  bool codes = false;

  bool given() const { return offset >= 0; }
  int64_t pixels() const { return height * width; }
  int64_t numbers() const { return height * width * channels; }
  int64_t bytes() const { return numbers() * (codes ? 1 : 4); }
  template <typename T>
  T* at(const Batch& batch) const {
    return given() ? reinterpret_cast<T*>(batch.arena + batch.images * offset) : nullptr;
  }
};

class Step {
 public:
  virtual ~Step() = default;

  // The step is cut into so many units, which different threads may do in any order.
  virtual int64_t units(int64_t images) const = 0;
  // Nanoseconds that a unit takes about, in one thread: is it worth to share the step?
  virtual double unit_cost() const = 0;
  // What the member does of it, as the team hands it out. Uses at most scratch_bytes() of scratch.
  virtual void run(const Batch& batch, Team& team, int member, uint8_t* scratch) const = 0;
  virtual int64_t scratch_bytes() const { return 0; }
  // Fewest units worth taking over from another thread.
  virtual int64_t stealable() const { return 2; }
  virtual int64_t weight_bytes() const { return 0; }
};

}  // namespace bitpress
