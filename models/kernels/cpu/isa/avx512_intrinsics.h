// The intrinsics, without what gcc 12 falsely says of them: their deliberately undefined operands
// are warned of wherever they are inlined.
#pragma once
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace bitpress {
namespace {

// Makes the compiler have this number, now and in a register. Otherwise gcc adds in an order of
// its own, for which the registers do not suffice, and loads again for each use what is to be
// loaded once.
inline void pin(__m512i& number) { asm("" : "+v"(number)); }
inline void pin(__m512& number) { asm("" : "+v"(number)); }
inline void pin(__m128i& number) { asm("" : "+v"(number)); }

// x + y, to the bit, on the ports of multiplications: for where those of additions are busy.
inline __m512 added(__m512 x, __m512 y) { return _mm512_fmadd_ps(x, _mm512_set1_ps(1.0f), y); }

}  // namespace
}  // namespace bitpress
