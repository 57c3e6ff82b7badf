// That the address sanitizer sees the ends of the engine's memory, and of the arrays in it.
#include <cstdio>
#include <initializer_list>

#include "fences.h"
#include "memory.h"

namespace bitpress::check {

namespace {

int g_failed = 0;

#if defined(BITPRESS_FENCES)

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("not so: %s\n", what);
  g_failed = 1;
}

bool open_within(const uint8_t* begin, int64_t bytes) {
  return __asan_region_is_poisoned(const_cast<uint8_t*>(begin), bytes) == nullptr;
}

bool fenced(const uint8_t* at) { return __asan_address_is_poisoned(at) != 0; }

void check() {
  for (int64_t bytes : {1, 63, 64, 100, 4096, 1 << 20}) {
    const Memory memory(bytes);
    expect(reinterpret_cast<uintptr_t>(memory.data()) % kAlignment == 0, "memory is aligned");
    expect(open_within(memory.data(), bytes), "memory can be used");
    expect(fenced(memory.data() - 1) && fenced(memory.data() + bytes), "memory ends where it ends");
    for (int64_t i = 0; i < bytes; ++i) expect(memory.data()[i] == 0, "memory is zero");
  }
  Layout size;
  size.take<float>(7);
  size.take<uint8_t>(130);
  const Memory memory(size.bytes());
  for (int64_t first : {7, 2, 5}) {  // what lay there before counts no more
    Layout layout(memory.data());
    const auto* numbers = reinterpret_cast<uint8_t*>(layout.take<float>(first));
    const uint8_t* bytes = layout.take<uint8_t>(130);
    expect(open_within(numbers, first * 4) && open_within(bytes, 130), "arrays can be used");
    expect(fenced(numbers + first * 4) && fenced(bytes - 1) && fenced(bytes + 130),
           "arrays end where they end");
  }
}

#else

void check() { std::printf("there are no fences without the address sanitizer\n"); }

#endif

}  // namespace

}  // namespace bitpress::check

int main() {
  bitpress::check::check();
  return bitpress::check::g_failed;
}
