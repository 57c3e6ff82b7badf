// What every AVX2 kernel needs of its compiler.
#pragma once
#include <immintrin.h>

#include "tiles.h"

namespace bitpress {
namespace {

// Hides from the compiler what is in a register. Else gcc loads what several shuffles share once
// for each of them, and adds in an order that keeps more numbers than there are registers.
inline __attribute__((always_inline)) void keep(__m256i& v) { asm("" : "+x"(v)); }
inline __attribute__((always_inline)) void keep(__m256& v) { asm("" : "+x"(v)); }

}  // namespace
}  // namespace bitpress
