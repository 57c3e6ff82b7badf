#include "waiting.h"

#include <linux/futex.h>
#include <limits.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace bitpress {
namespace {

static_assert(sizeof(Word) == 4 && Word::is_always_lock_free, "a futex is a plain word");

constexpr int kLooksBetweenClocks = 32;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

int64_t nanoseconds_now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

bool spin_while(const Word& word, uint32_t old, int64_t nanoseconds) {
  int64_t end = 0;
  for (;;) {
    for (int i = 0; i < kLooksBetweenClocks; ++i) {
      if (word.load(std::memory_order_acquire) != old) return true;
      pause();
    }
    const int64_t now = nanoseconds_now();
    if (end == 0) end = now + nanoseconds;
    if (now >= end) return false;
  }
}

void sleep_while(Word& word, uint32_t old) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
}

void wake_all(Word& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace bitpress
