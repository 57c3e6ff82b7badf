// Waiting for another thread: a short spin, for it costs a wake-up of tens of microseconds to sleep,
// then a futex.
#pragma once
#include <stdint.h>

#include <atomic>

namespace bitpress {

using Word = std::atomic<uint32_t>;  // lock-free, as the kernel looks at it too

// How long to spin. Steps of a network take 10 to 500 microseconds, and members of a team end theirs
// at nearly the same time. After a run the worker of a pool waits so long for the next one.
constexpr int64_t kSpinNanoseconds = 60000;

// Spins until `word` is not `old` any more, at most kSpinNanoseconds; false where it still is.
bool spin_while(const Word& word, uint32_t old);

// Sleeps as long as `word` is `old`; may return early.
void sleep_while(Word& word, uint32_t old);
void wake_all(Word& word);

}  // namespace bitpress
