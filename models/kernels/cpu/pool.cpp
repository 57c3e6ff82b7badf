#include "pool.h"

#include <pthread.h>
#include <signal.h>

#include <mutex>
#include <new>
#include <vector>

#include "waiting.h"

namespace bitpress {
namespace {

enum State : uint32_t {
  kIdle,         // spins, or is about to
  kIdleAsleep,   // has to be woken
  kBusy,         // has a task
  kBusyAwaited,  // likewise, and its caller sleeps until it is done
};

struct alignas(64) Worker {
  Word state{kIdle};
  Task* task = nullptr;  // as the next, written before state says kBusy
  int member = 0;
};

void begin(Worker& worker) {
  if (worker.state.exchange(kBusy) == kIdleAsleep) wake_all(worker.state);
}

void await(Worker& worker) {
  uint32_t seen = kBusy;
  if (spin_while(worker.state, kBusy, kStepSpin)) return;
  if (!worker.state.compare_exchange_strong(seen, kBusyAwaited)) return;
  while (worker.state.load(std::memory_order_acquire) == kBusyAwaited) {
    sleep_while(worker.state, kBusyAwaited);
  }
}

void await_task(Worker& worker) {
  uint32_t seen = worker.state.load(std::memory_order_acquire);
  if (seen == kIdle && !spin_while(worker.state, kIdle, kRunSpin)) {
    worker.state.compare_exchange_strong(seen, kIdleAsleep);
  }
  while (worker.state.load(std::memory_order_acquire) == kIdleAsleep) {
    sleep_while(worker.state, kIdleAsleep);
  }
}

void* worker_main(void* argument) {
  Worker& worker = *static_cast<Worker*>(argument);
  for (;;) {
    await_task(worker);
    worker.task->work(worker.member);
    if (worker.state.exchange(kIdle) == kBusyAwaited) wake_all(worker.state);
  }
  return nullptr;
}

class Pool {
 public:
  // Up to `wanted` idle workers, which are the caller's until it gives them back.
  std::vector<Worker*> borrow(int wanted) {
    std::vector<Worker*> workers;
    workers.reserve(static_cast<size_t>(wanted));
    const std::lock_guard<std::mutex> lock(mutex_);
    while (count_ < wanted && start_one()) {
    }
    while (!idle_.empty() && static_cast<int>(workers.size()) < wanted) {
      workers.push_back(idle_.back());
      idle_.pop_back();
    }
    return workers;
  }

  void give_back(const std::vector<Worker*>& workers) {
    const std::lock_guard<std::mutex> lock(mutex_);
    // Reversed, so that the next run finds the workers, whose caches are warm, in the same order.
    idle_.insert(idle_.end(), workers.rbegin(), workers.rend());
  }

  std::mutex& mutex() { return mutex_; }

 private:
  // A system that refuses a further thread is no reason to fail: the run goes on with fewer.
  bool start_one() {
    idle_.reserve(static_cast<size_t>(count_) + 1);
    auto* worker = new (std::nothrow) Worker;
    if (worker == nullptr) return false;
    // Signals are for the threads of whoever loaded the library; but those that a thread raises by
    // an error of its own must reach their handlers.
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) sigdelset(&blocked, own);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    pthread_t thread;
    const int failed = pthread_create(&thread, nullptr, worker_main, worker);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (failed != 0) {
      delete worker;
      return false;
    }
    pthread_detach(thread);
    pthread_setname_np(thread, "bitpress");
    idle_.push_back(worker);
    ++count_;
    return true;
  }

  std::mutex mutex_;
  std::vector<Worker*> idle_;
  int count_ = 0;
};

// Never destroyed: workers wait in it when the process ends. A child of a fork has none of its
// parent's threads and makes a new one; what the old one held is lost.
Pool* g_pool = nullptr;
unsigned g_forks = 0;
std::mutex g_mutex;  // of the two, and of what a RunMutex consists of

void before_fork() {
  g_mutex.lock();
  if (g_pool != nullptr) g_pool->mutex().lock();
}

void after_fork_in_parent() {
  if (g_pool != nullptr) g_pool->mutex().unlock();
  g_mutex.unlock();
}

void after_fork_in_child() {
  g_pool = nullptr;
  ++g_forks;
  g_mutex.unlock();
}

Pool& pool() {
  const std::lock_guard<std::mutex> lock(g_mutex);
  if (g_pool == nullptr) g_pool = new Pool;
  return *g_pool;
}

const int g_handlers = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);

}  // namespace

void run_in_pool(Task& task, int threads) {
  if (threads <= 1) {
    task.begin(1);
    return task.work(0);
  }
  Pool& all = pool();
  const std::vector<Worker*> workers = all.borrow(threads - 1);
  const int members = static_cast<int>(workers.size()) + 1;
  task.begin(members);
  for (int i = 1; i < members; ++i) {
    Worker& worker = *workers[static_cast<size_t>(i) - 1];
    worker.task = &task;
    worker.member = i;
    begin(worker);
  }
  task.work(0);
  for (Worker* worker : workers) await(*worker);
  all.give_back(workers);
}

void RunMutex::lock() {
  std::mutex* current;
  {
    const std::lock_guard<std::mutex> lock(g_mutex);
    if (mutex_ == nullptr || forks_ != g_forks) {
      static_cast<void>(mutex_.release());  // not destroyed, as it may be locked
      mutex_.reset(new std::mutex);
      forks_ = g_forks;
    }
    current = mutex_.get();
  }
  current->lock();
}

}  // namespace bitpress
