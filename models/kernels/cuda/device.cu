// What the kernels need of the machine: instructions that C++ has no words for, each as a function.
//
// Everything else is plain C++ over these, so that a processor can run it too: there another file
// takes this one's place (tests/native/device_on_cpu.h).

using Word = unsigned int;            // 32 signs, or 32 bits of weights
using Half = unsigned short;          // the bits of a binary16 number
using Size = long long;               // places in memory, which 32 bits do not hold

#define DEVICE __device__ __forceinline__
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]

DEVICE int thread_number() { return threadIdx.x; }
DEVICE int lane_number() { return threadIdx.x & 31; }
DEVICE int warp_number() { return threadIdx.x >> 5; }
DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }
DEVICE int block_z() { return blockIdx.z; }
DEVICE void wait_for_block() { __syncthreads(); }

// Begins to copy 1, 2 or 4 words to shared memory; without `there`, zeros, and nothing is read.
// Both addresses are multiples of the copy's size.
DEVICE void begin_copy(Word* shared, const Word* global, int words, bool there) {
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = there ? words * 4 : 0;
  if (words == 4) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(global),
                 "r"(bytes)
                 : "memory");
  } else if (words == 2) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(target), "l"(global),
                 "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(target), "l"(global),
                 "r"(bytes)
                 : "memory");
  }
}

// The copies since the last call are one group, even where there were none.
DEVICE void end_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all but the latest `pending` groups of this thread have arrived.
template <int pending>
DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Reads four matrices of 8 rows of 4 words each. Lane i names row i % 8 of matrix i / 8, and gets
// word i % 4 of row i / 4 of each matrix.
DEVICE void read_matrices(Word (&words)[4], const Word* row) {
  const unsigned source = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(source)
               : "memory");
}

// Adds popcount(a & b) of 16 rows a by 8 columns b, 256 bits each.
DEVICE void count_common_bits(int (&sums)[4], const Word (&a)[4], Word b0, Word b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE int popcount(Word word) { return __popc(word); }

// A word of one bit from each lane; and the bits of the four lanes whose numbers differ in the
// lowest two places alone. All lanes of a warp take part.
DEVICE Word ballot(bool bit) { return __ballot_sync(0xffffffffu, bit); }
DEVICE Word joined_by_four(Word word) {
  word |= __shfl_xor_sync(0xffffffffu, word, 1);
  return word | __shfl_xor_sync(0xffffffffu, word, 2);
}

// Rounded one by one: a multiplication and an addition are never joined.
DEVICE float product_of(float a, float b) { return __fmul_rn(a, b); }
DEVICE float sum_of(float a, float b) { return __fadd_rn(a, b); }
DEVICE float quotient_of(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float number_of(int whole) { return __int2float_rn(whole); }
DEVICE float round_down(float x) { return floorf(x); }

DEVICE Half half_of(float x) {
  Half half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return half;
}

DEVICE float number_of_half(Half half) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
  return x;
}
