// Fences in memory, for the address sanitizer: whoever touches what is fenced ends the process.
// Without the sanitizer they are nothing.
#pragma once
#include <stdint.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BITPRESS_FENCES 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define BITPRESS_FENCES 1
#endif

#if defined(BITPRESS_FENCES)
#include <sanitizer/asan_interface.h>
#endif

namespace bitpress {

#if defined(BITPRESS_FENCES)
constexpr bool kFences = true;
inline void fence(const uint8_t* at, int64_t bytes) {
  __asan_poison_memory_region(at, static_cast<size_t>(bytes));
}
inline void take_down_fence(const uint8_t* at, int64_t bytes) {
  __asan_unpoison_memory_region(at, static_cast<size_t>(bytes));
}
#else
constexpr bool kFences = false;
inline void fence(const uint8_t*, int64_t) {}
inline void take_down_fence(const uint8_t*, int64_t) {}
#endif

}  // namespace bitpress
