// Registers of 16 bytes, which gcc and clang map to whatever the processor has, SSE2 or NEON.
#pragma once
#include <string.h>

#include "tiles.h"

namespace bitpress {
namespace {

typedef uint8_t U8x4 __attribute__((vector_size(4)));
typedef uint8_t U8x8 __attribute__((vector_size(8)));
typedef uint16_t U16x8 __attribute__((vector_size(16)));
typedef uint32_t U32x4 __attribute__((vector_size(16)));
typedef float F32x4 __attribute__((vector_size(16)));

constexpr int kWordBits = 8;  // weights of one filter for as many channels

template <typename Vector>
inline Vector load(const void* from) {
  Vector x;
  memcpy(&x, from, sizeof x);
  return x;
}

template <typename Vector>
inline void store(void* to, const Vector& x) {
  memcpy(to, &x, sizeof x);
}

}  // namespace
}  // namespace bitpress
