#include "team.h"

#include <algorithm>

namespace bitpress {
namespace {

constexpr int64_t kLeastSpin = 500;  // nanoseconds

constexpr uint64_t pack(int64_t begin, int64_t end) {
  return static_cast<uint64_t>(begin) << 32 | static_cast<uint64_t>(end);
}

constexpr Stretch unpack(uint64_t packed) {
  return {static_cast<int64_t>(packed >> 32), static_cast<int64_t>(packed & UINT32_MAX)};
}

}  // namespace

Team::Team(int max_members) : shares_(new Share[static_cast<size_t>(max_members)]) {}

void Team::gather(int members) {
  members_ = members;
  missing_.store(members, std::memory_order_relaxed);
  asleep_.store(0, std::memory_order_relaxed);  // a run that a fork cut off may have left some
}

void Team::hand_out(int64_t units, bool split, int64_t stealable) {
  split_ = split && members_ > 1;
  stealable_ = std::max<int64_t>(stealable, 2);
  for (int i = 0; i < members_; ++i) {
    const int64_t begin = split_ ? units * i / members_ : i == 0 ? 0 : units;
    const int64_t end = split_ ? units * (i + 1) / members_ : units;
    shares_[static_cast<size_t>(i)].stretch.store(pack(begin, end), std::memory_order_relaxed);
  }
}

Stretch Team::take(int member, int64_t row_units, int64_t max_rows, int64_t wall_units) {
  std::atomic<uint64_t>& own = shares_[static_cast<size_t>(member)].stretch;
  uint64_t seen = own.load(std::memory_order_acquire);
  for (;;) {
    const Stretch left = unpack(seen);
    if (left.empty()) {
      if (!split_ || !steal(member)) return {0, 0};
      seen = own.load(std::memory_order_acquire);
      continue;
    }
    const int64_t into_row = left.begin % row_units;
    const int64_t row_end = left.begin - into_row + row_units;
    const int64_t whole_rows = (left.end - left.begin) / row_units;
    int64_t end = std::min(left.end, row_end);
    if (into_row == 0 && whole_rows > 1) {
      // Half of what is left, so that others find something when they are through before.
      const int64_t most = split_ ? (whole_rows + 1) / 2 : whole_rows;
      const int64_t wall = (left.begin / wall_units + 1) * wall_units;
      end = std::min(left.begin + std::min(max_rows, most) * row_units, wall);
    }
    if (own.compare_exchange_weak(seen, pack(end, left.end), std::memory_order_acq_rel)) {
      return {left.begin, end};
    }
  }
}

// Units are handed out once in a step, so that a stretch seen twice is the same stretch: comparing
// is enough.
bool Team::steal(int member) {
  for (int i = 1; i < members_; ++i) {
    std::atomic<uint64_t>& other =
        shares_[static_cast<size_t>((member + i) % members_)].stretch;
    uint64_t seen = other.load(std::memory_order_acquire);
    for (;;) {
      const Stretch left = unpack(seen);
      if (left.empty() || left.end - left.begin < stealable_) break;
      const int64_t middle = left.begin + (left.end - left.begin + 1) / 2;
      if (other.compare_exchange_weak(seen, pack(left.begin, middle),
                                      std::memory_order_acq_rel)) {
        shares_[static_cast<size_t>(member)].stretch.store(pack(middle, left.end),
                                                           std::memory_order_release);
        return true;
      }
    }
  }
  return false;
}

void Team::pass() {
  phase_.fetch_add(1);
  if (asleep_.load() != 0) wake_all(phase_);
}

// Where threads outnumber the processors that are free for them, whoever spins may keep out the
// very thread that is waited for. It shows in waits that are longer than any step's end: then the
// member spins less, and again more after a short one.
void Team::wait(int member, uint32_t phase) {
  int64_t& spin = shares_[static_cast<size_t>(member)].spin;
  const int64_t begin = nanoseconds_now();
  if (!spin_while(phase_, phase, spin)) {
    asleep_.fetch_add(1);
    while (phase_.load() == phase) sleep_while(phase_, phase);
    asleep_.fetch_sub(1);
  }
  const bool was_short = nanoseconds_now() - begin < kStepSpin;
  spin = was_short ? std::min(2 * spin, kStepSpin) : std::max(spin / 2, kLeastSpin);
}

}  // namespace bitpress
