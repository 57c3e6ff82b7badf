// The engine's threads.
//
// There is one pool in a process, shared by all programs. A run borrows workers from it and gives
// them back: two programs that run at once share what there is, each with fewer, rather than put
// twice as many threads on the processors, where a member of a team that waits for another would
// take the processor from it. A run that finds no worker idle goes on in its caller's thread alone,
// so that nobody waits for anybody.
//
// The threads are the engine's own, not OpenMP's: torch brings its libgomp along, whose threads
// spin between parallel regions, and two OpenMP runtimes in one process undo each other's settings.
// Workers spin for a moment after a run, as another may follow, and then sleep.
#pragma once
#include <memory>
#include <mutex>

namespace bitpress {

// What the threads of a run do. Must not throw.
class Task {
 public:
  // In the caller's thread, before any of `members` threads begins.
  virtual void begin(int members) noexcept = 0;
  // In each thread; member 0 is the caller's.
  virtual void work(int member) noexcept = 0;

 protected:
  ~Task() = default;
};

// Calls task.work in the caller's thread and in up to `threads` - 1 others; returns when all have
// ended. Any thread may call it; not from within a task. After a fork the child starts anew.
void run_in_pool(Task& task, int threads);

// A mutex that is free in the child of a fork. Whoever held it in another thread of the parent is
// not there to give it back.
class RunMutex {
 public:
  void lock();
  void unlock() { mutex_->unlock(); }

 private:
  std::unique_ptr<std::mutex> mutex_;
  unsigned forks_ = 0;  // that the process had seen when the mutex was made
};

}  // namespace bitpress
