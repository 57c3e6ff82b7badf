// The intrinsics, without what gcc 12 falsely says of them: their deliberately undefined operands
// are warned of wherever they are inlined.
#pragma once
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
