// Waiting for another thread: a short spin, for it costs a wake-up of tens of microseconds to
// sleep, then a futex.
#pragma once
#include <stdint.h>

#include <atomic>

namespace bitpress {

using Word = std::atomic<uint32_t>;  // lock-free, as the kernel looks at it too

// Most that a member of a team spins for the others at the end of a step: they end it at nearly the
// same time.
constexpr int64_t kStepSpin = 20000;  // nanoseconds
// How long a worker of the pool spins for another run.
constexpr int64_t kRunSpin = 60000;

// Spins until `word` is not `old` any more, `nanoseconds` at most; false where it still is.
bool spin_while(const Word& word, uint32_t old, int64_t nanoseconds);

// Of a clock that never goes back.
int64_t nanoseconds_now();

// Sleeps as long as `word` is `old`; may return early.
void sleep_while(Word& word, uint32_t old);
void wake_all(Word& word);

}  // namespace bitpress
