// Takes the place of models/kernels/cuda/device.cu, for a processor to do the kernels' sums.
//
// The threads of a block are contexts of one thread of the processor. Each runs until it needs the
// others of its warp or block; which warp goes on then is drawn at random, so that a barrier that
// is missing is noticed. What warps do together is computed from the values of all lanes, whose
// places in a matrix the PTX manual names. Shared memory begins as noise. An asynchronous copy is
// made as late as it may be, when somebody waits for it, or else at once, as the run is told.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

using Word = unsigned int;
using Half = unsigned short;
using Size = long long;

struct alignas(8) float2 {
  float x, y;
};

#define DEVICE inline
#define KERNEL(threads) void
#define SHARED(type, name, count) type* const name = device::shared<type>(count)

namespace device {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "device_on_cpu: %s\n", what);
  std::abort();
}

// A copy that has begun.
struct Copy {
  Word* shared;
  const Word* global;
  int words;
  bool there;

  void make() const {
    if (there) {
      std::memcpy(shared, global, words * sizeof(Word));
    } else {
      std::memset(shared, 0, words * sizeof(Word));
    }
  }
};

// Threads that wait for each other, and what each brings along.
struct Meeting {
  int expected = 0, arrived = 0;
  long round = 0;
  std::vector<uint64_t> brought, given;
};

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
  Meeting* waits_for = nullptr;
  long round = 0;
  size_t shared_taken = 0;
  std::deque<std::vector<Copy>> copies{1};  // the last group is still open
};

struct Block {
  int x = 0, y = 0, z = 0;
  std::vector<Thread> threads;
  std::vector<Meeting> warps;
  Meeting all;
  ucontext_t scheduler;
  int current = 0;
  bool late_copies = true;
  uint64_t random = 1;
  std::vector<char> memory;  // shared by the threads
  std::function<void()> kernel;
};

inline Block* block = nullptr;

inline Thread& self() { return block->threads[block->current]; }

inline uint64_t drawn() {
  block->random ^= block->random << 13;
  block->random ^= block->random >> 7;
  block->random ^= block->random << 17;
  return block->random;
}

// Every thread asks for the same arrays in the same order, and gets the same memory.
template <class Type>
Type* shared(size_t count) {
  constexpr size_t kLimit = 48 * 1024;
  Thread& thread = self();
  const size_t begin = thread.shared_taken;
  thread.shared_taken += (count * sizeof(Type) + 15) / 16 * 16;
  if (thread.shared_taken > kLimit) fail("more shared memory than a block has");
  return reinterpret_cast<Type*>(block->memory.data() + begin);
}

// Brings `value` to a meeting; when all are there, what they brought stands in `given`.
inline Meeting& meet(Meeting& meeting, int place, uint64_t value) {
  meeting.brought[place] = value;
  const long round = meeting.round;
  if (++meeting.arrived == meeting.expected) {
    meeting.arrived = 0;
    ++meeting.round;
    meeting.given = meeting.brought;
  }
  Thread& thread = self();
  thread.waits_for = &meeting;
  thread.round = round;
  swapcontext(&thread.context, &block->scheduler);
  return meeting;
}

inline void start() {
  block->kernel();
  self().done = true;
  swapcontext(&self().context, &block->scheduler);
}

inline void prepare(Thread& thread) {
  constexpr size_t kStack = 256 * 1024;
  if (!thread.stack) thread.stack.reset(new char[kStack]);
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.get();
  thread.context.uc_stack.ss_size = kStack;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, start, 0);
}

inline bool can_go_on(const Thread& thread) {
  return !thread.done && (!thread.waits_for || thread.waits_for->round > thread.round);
}

// Lets each thread of a warp go on that can; returns whether any could.
inline bool run_warp(int warp) {
  bool any = false;
  for (block->current = warp * 32; block->current < warp * 32 + 32; ++block->current) {
    Thread& thread = self();
    if (!can_go_on(thread)) continue;
    any = true;
    thread.waits_for = nullptr;
    swapcontext(&block->scheduler, &thread.context);
  }
  return any;
}

// Runs the threads of one block to their ends: a warp drawn at random as far as it gets without the
// others, then the next one, so that warps run as far ahead of each other as barriers let them.
inline void run_block() {
  const int warps = static_cast<int>(block->warps.size());
  while (true) {
    bool any = false;
    const int first = static_cast<int>(drawn() % warps);
    for (int i = 0; i < warps; ++i) {
      while (run_warp((first + i) % warps)) any = true;
    }
    if (any) continue;
    for (const Thread& thread : block->threads) {
      if (!thread.done) fail("threads wait for others that never come");
    }
    return;
  }
}

// Runs `kernel` on every thread of every block.
inline void run_grid(int across, int down, int deep, int threads, uint64_t seed, bool late_copies,
                     std::function<void()> kernel) {
  Block whole;
  block = &whole;
  whole.threads.resize(threads);
  whole.late_copies = late_copies;
  whole.random = seed * 2 + 1;
  whole.kernel = std::move(kernel);
  whole.memory.resize(64 * 1024);
  for (whole.z = 0; whole.z < deep; ++whole.z) {
    for (whole.y = 0; whole.y < down; ++whole.y) {
      for (whole.x = 0; whole.x < across; ++whole.x) {
        for (char& byte : whole.memory) byte = static_cast<char>(drawn() >> 24);
        whole.warps.assign(threads / 32, Meeting{});
        for (Meeting& warp : whole.warps) {
          warp.expected = 32;
          warp.brought.resize(32);
        }
        whole.all = Meeting{};
        whole.all.expected = threads;
        whole.all.brought.resize(threads);
        for (Thread& thread : whole.threads) {
          thread.done = false;
          thread.waits_for = nullptr;
          thread.shared_taken = 0;
          thread.copies.assign(1, {});
          prepare(thread);
        }
        run_block();
      }
    }
  }
  block = nullptr;
}

// The values that the lanes of this warp bring.
inline std::vector<uint64_t> from_lanes(uint64_t value) {
  return meet(block->warps[block->current / 32], block->current % 32, value).given;
}

}  // namespace device

inline int thread_number() { return device::block->current; }
inline int lane_number() { return thread_number() % 32; }
inline int warp_number() { return thread_number() / 32; }
inline int block_x() { return device::block->x; }
inline int block_y() { return device::block->y; }
inline int block_z() { return device::block->z; }
inline void wait_for_block() { device::meet(device::block->all, thread_number(), 0); }

inline void begin_copy(Word* shared, const Word* global, int words, bool there) {
  const auto size = words * sizeof(Word);
  if (words != 1 && words != 2 && words != 4) device::fail("no copy has this size");
  if (reinterpret_cast<uintptr_t>(shared) % size || reinterpret_cast<uintptr_t>(global) % size) {
    device::fail("a copy's address is no multiple of its size");
  }
  const device::Copy copy{shared, global, words, there};
  if (device::block->late_copies) {
    device::self().copies.back().push_back(copy);
  } else {
    copy.make();
  }
}

inline void end_copy_group() { device::self().copies.emplace_back(); }

template <int pending>
inline void wait_for_copies() {
  auto& groups = device::self().copies;
  while (groups.size() > pending + 1) {
    for (const device::Copy& copy : groups.front()) copy.make();
    groups.pop_front();
  }
}

inline void read_matrices(Word (&words)[4], const Word* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) device::fail("a row of a matrix is not aligned");
  const auto rows = device::from_lanes(reinterpret_cast<uintptr_t>(row));
  const int lane = lane_number();
  for (int matrix = 0; matrix < 4; ++matrix) {
    words[matrix] = reinterpret_cast<const Word*>(rows[matrix * 8 + lane / 4])[lane % 4];
  }
}

inline void count_common_bits(int (&sums)[4], const Word (&a)[4], Word b0, Word b1) {
  // Of each lane: element i of a is of row (lane / 4) + 8 * (i % 2), word (lane % 4) + 4 * (i / 2);
  // b0 and b1 are of column lane / 4, words lane % 4 and 4 + lane % 4.
  const auto a01 = device::from_lanes(a[0] | uint64_t{a[1]} << 32);
  const auto a23 = device::from_lanes(a[2] | uint64_t{a[3]} << 32);
  const auto b = device::from_lanes(b0 | uint64_t{b1} << 32);
  const int lane = lane_number();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, column = lane % 4 * 2 + i % 2, high_row = i / 2;
    for (int word = 0; word < 8; ++word) {
      const uint64_t pair = (word < 4 ? a01 : a23)[row * 4 + word % 4];
      const Word left = static_cast<Word>(high_row ? pair >> 32 : pair);
      const uint64_t both = b[column * 4 + word % 4];
      const Word right = static_cast<Word>(word < 4 ? both : both >> 32);
      sums[i] += __builtin_popcount(left & right);
    }
  }
}

inline int popcount(Word word) { return __builtin_popcount(word); }

inline Word ballot(bool bit) {
  const auto bits = device::from_lanes(bit);
  Word word = 0;
  for (int lane = 0; lane < 32; ++lane) word |= static_cast<Word>(bits[lane]) << lane;
  return word;
}

inline Word joined_by_four(Word word) {
  const auto words = device::from_lanes(word);
  const int first = lane_number() / 4 * 4;
  return static_cast<Word>(words[first] | words[first + 1] | words[first + 2] | words[first + 3]);
}

// Built without contraction: each is rounded on its own.
inline float product_of(float a, float b) { return a * b; }
inline float sum_of(float a, float b) { return a + b; }
inline float quotient_of(float a, float b) { return a / b; }
inline float number_of(int whole) { return static_cast<float>(whole); }
inline float round_down(float x) { return std::floor(x); }

// To nearest, ties to even, step by step: not every compiler knows binary16.
inline Half half_of(float x) {
  const auto sign = static_cast<Half>(std::signbit(x) ? 0x8000 : 0);
  const float magnitude = std::fabs(x);
  if (std::isnan(x)) return 0x7fff;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  if (magnitude < 0x1p-14f) {  // multiples of 2**-24
    return sign | static_cast<Half>(std::nearbyint(magnitude * 0x1p24f));
  }
  int exponent;
  const float significand = std::frexp(magnitude, &exponent);  // in [1/2, 1)
  const int rounded = static_cast<int>(std::nearbyint(significand * 2048));
  return sign | static_cast<Half>(((exponent + 14) << 10) + rounded - 1024);
}

inline float number_of_half(Half half) {
  const float sign = half & 0x8000 ? -1 : 1;
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(fraction), -24);
  return sign * std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
}
