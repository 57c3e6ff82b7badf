// Memory of an engine: aligned, zeroed, and paid for only where it is touched.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "kernel_set.h"

namespace bitpress {

// An anonymous mapping. The system commits its pages, all zero, as they are touched. Where the
// address sanitizer looks on, the ends are just where `bytes` says (fences.h).
class Memory {
 public:
  Memory() = default;
  // Throws std::bad_alloc.
  explicit Memory(int64_t bytes);
  Memory(Memory&& other) noexcept;
  Memory& operator=(Memory&& other) noexcept;
  ~Memory();

  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void free_all();

  uint8_t* data_ = nullptr;
  void* whole_ = nullptr;  // what data_ lies in, where that is more
  int64_t bytes_ = 0;
};

constexpr int64_t round_up(int64_t number, int64_t multiple) {
  return (number + multiple - 1) / multiple * multiple;
}

constexpr int64_t ceil_div(int64_t number, int64_t divisor) {
  return (number + divisor - 1) / divisor;
}

// The product of non-negative sizes. Throws std::bad_alloc where it does not fit.
int64_t bytes_of(int64_t a, int64_t b, int64_t c = 1, int64_t d = 1);

// Lays out arrays one after the other, aligned; used twice, to count bytes and to place them.
class Layout {
 public:
  explicit Layout(uint8_t* base = nullptr) : base_(base) {}

  template <typename T>
  T* take(int64_t count) {
    T* at = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    grow(count, static_cast<int64_t>(sizeof(T)));
    return at;
  }
  int64_t bytes() const { return bytes_; }

 private:
  void grow(int64_t count, int64_t size);

  uint8_t* base_;
  int64_t bytes_ = 0;
};

}  // namespace bitpress
