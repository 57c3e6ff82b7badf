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

// Makes the compiler have this number, now and in a register. Otherwise gcc adds in an order of its
// own, for which the registers do not suffice, and loads again for each use what is to be loaded once.
inline void pin(__m512i& number) { asm("" : "+v"(number)); }
inline void pin(__m512& number) { asm("" : "+v"(number)); }

}  // namespace
}  // namespace bitpress
