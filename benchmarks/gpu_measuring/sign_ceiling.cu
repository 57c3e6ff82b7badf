// How fast tensor cores multiply signs at most: nothing but the instruction, on registers.
//
// Each warp keeps eight sums under way, which do not wait for one another. `results` is never
// written, but the compiler does not know that the sums are not negative.

extern "C" __global__ void __launch_bounds__(256) sign_ceiling(int rounds, int* results) {
  int sums[8][4] = {};
  unsigned left[4], right[2];
  for (int i = 0; i < 4; ++i) left[i] = threadIdx.x * 2654435761u + i;
  for (int i = 0; i < 2; ++i) right[i] = threadIdx.x * 40503u + i;
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int chain = 0; chain < 8; ++chain) {
      asm volatile(
          "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+r"(sums[chain][0]), "+r"(sums[chain][1]), "+r"(sums[chain][2]), "+r"(sums[chain][3])
          : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
    }
  }
  int least = 0;
  for (int chain = 0; chain < 8; ++chain) {
    for (int i = 0; i < 4; ++i) least = min(least, sums[chain][i]);
  }
  if (least < 0) results[threadIdx.x] = least;
}
