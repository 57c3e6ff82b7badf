// How the threads of one run share its steps: each has a stretch of a step's units of work and,
// when it is through, takes over half of what another has left. At the end of a step all wait for
// all.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <atomic>
#include <memory>

#include "waiting.h"

namespace bitpress {

struct Stretch {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
};

class Team {
 public:
  static constexpr int64_t kMaxUnits = UINT32_MAX;  // of a step

  explicit Team(int max_members);

  // Before a run, by one thread.
  void gather(int members);

  // Hand out `units` of a new step, all to member 0 unless `split`. By one thread, while all others
  // wait. No stretch of fewer than `stealable` units is taken from another member.
  void hand_out(int64_t units, bool split, int64_t stealable);

  // The first units of what the member has left, empty where nothing is left for it in the step.
  // They are either the rest of a row of `row_units`, or as many whole rows, `max_rows` at most,
  // and do not reach beyond a multiple of `wall_units`.
  Stretch take(int member, int64_t row_units, int64_t max_rows, int64_t wall_units);

  // Waits for all members; the last one to arrive calls `next` before the others go on.
  template <typename Next>
  void meet(int member, Next next) {
    const uint32_t phase = phase_.load(std::memory_order_acquire);
    if (missing_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      next();
      missing_.store(members_, std::memory_order_relaxed);
      pass();
    } else {
      wait(member, phase);
    }
  }

  int members() const { return members_; }

 private:
  struct alignas(64) Share {
    std::atomic<uint64_t> stretch{0};  // first unit in the high half, end in the low one
    int64_t spin = kStepSpin;          // the member's own affair
  };

  bool steal(int member);
  void pass();
  void wait(int member, uint32_t phase);

  std::unique_ptr<Share[]> shares_;
  int members_ = 1;
  bool split_ = false;
  int64_t stealable_ = 1;
  alignas(64) std::atomic<int> missing_{1};
  alignas(64) Word phase_{0};
  std::atomic<uint32_t> asleep_{0};
};

}  // namespace bitpress
