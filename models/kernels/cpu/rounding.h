// How a thread rounds, and whether it keeps numbers too small for a full fraction: the caller may
// have chosen otherwise (torch.set_flush_denormal), which must not show in results, still less in
// those of one thread and not of another.
#pragma once
#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace bitpress {

// While it lives, its thread computes as IEEE 754 has it by default: to nearest, nothing flushed to
// zero, no traps.
class UsualRounding {
 public:
  UsualRounding() : before_(get()) { set(kUsual); }
  ~UsualRounding() { set(before_); }
  UsualRounding(const UsualRounding&) = delete;
  UsualRounding& operator=(const UsualRounding&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr uint64_t kUsual = 0x1F80;
  static uint64_t get() { return _mm_getcsr(); }
  static void set(uint64_t control) { _mm_setcsr(static_cast<unsigned>(control)); }
#elif defined(__aarch64__)
  static constexpr uint64_t kUsual = 0;
  static uint64_t get() {
    uint64_t control;
    asm volatile("mrs %0, fpcr" : "=r"(control));
    return control;
  }
  static void set(uint64_t control) { asm volatile("msr fpcr, %0" : : "r"(control)); }
#else
  static constexpr uint64_t kUsual = 0;
  static uint64_t get() { return 0; }
  static void set(uint64_t) {}
#endif

  uint64_t before_;
};

}  // namespace bitpress
