// The C ABI of the CPU engine: plain structs and functions, so that one build serves every torch.
//
// A *program* is a plan made flat: a list of values, which live in one arena, and a list of steps
// that read and write them. It is made by models/runtime (lowered from a plan) and checked here
// once more, to the last index: whatever a caller hands over, no step reads or writes out of
// bounds.
//
// Maps are channels last: the number of image i, row y, column x, channel c of a value stands at
// ((i * height + y) * width + x) * channels + c. A vector of F numbers is a map 1 x 1 of F
// channels. Images of a batch follow each other without a gap.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BP_ABI_VERSION 1
#define BP_API __attribute__((visibility("default")))

enum bp_isa { BP_PORTABLE = 0, BP_AVX2 = 1, BP_AVX512 = 2, BP_ISAS = 3 };

enum bp_type { BP_F32 = 0, BP_U8 = 1 };

enum bp_activation { BP_IDENTITY = 0, BP_RELU = 1, BP_HARDTANH = 2, BP_PRELU = 3 };

enum bp_step_kind {
  BP_INPUT = 0,    // the program's input, float32 (N, C, H, W), to channels last; then finish
  BP_PRODUCT = 1,  // convolution, or linear layer as a 1x1 convolution of a 1x1 map; then finish
  BP_MAX_POOL = 2, // of float32, or of codes to codes
  BP_AVG_POOL = 3, // of float32, summed row by row in the window, then divided; then finish
  BP_ELEMENTWISE = 4,  // finish alone; reads float32, or codes as step * q + low
  BP_SIGN = 5,     // +1 where gain[c] * x >= shift[c], else -1; gain 1 and shift 0 where missing
  BP_COPY = 6,     // every (stride)th row and column to channels channel_offset.. of out
  BP_ZERO = 7,     // out becomes zeros: 0.0f, or the code in_zero
  BP_TRANSPOSE = 8,  // a map (H, W, C) as a vector in the order C, H, W
  BP_OUTPUT = 9    // in0, float32, to the program's output, (N, C, H, W)
};

// A value: `offset` is its place in the arena for a batch of one, in bytes, a multiple of 64. For n
// images it lies at n * offset. No two values that are alive at once overlap, but out_f32 of a
// product or an elementwise step may lie just where one of float32 that it adds or looks at number
// by number does: each number is read before its result is written, once. All that is the maker's
// business, a mistake gives wrong numbers but stays inside of the arena.
typedef struct bp_value {
  int64_t offset;
  int64_t channels, height, width;
  int32_t type;  // bp_type
  int32_t unused;
} bp_value;

// To finish a result x, channel by channel, in binary32, each operation rounded, none fused:
//
//   x = gain[c] * x           where gain is given
//   x = x + shift[c]          where shift is given
//   x = x + in1               where in1 is a value (float32, of the shape of the result)
//   x = activation(x)
//   out_f32 = x               where out_f32 is a value
//   out_u8 = q                where out_u8 is a value, q = clamp(floor((x - low) / step + 0.5), 0,
//                             2^bits - 1); for one bit, q = (x >= low + step / 2); the q of a NaN
//                             is 0
//
// Integer sums are rounded to binary32 first. With several bases, or base_scale, x is
// base_scale[0][c] * z[0][c] + base_scale[1][c] * z[1][c] + ... in this order (docs/FORMAT.md 4.4).
typedef struct bp_step {
  int32_t kind;        // bp_step_kind
  int32_t in0, in1;    // values read; -1 where none
  int32_t out_f32, out_u8;  // values written; -1 where none
  int32_t activation;  // bp_activation
  float activation_low, activation_high;

  float low, step;     // of out_u8
  int32_t bits;
  int32_t in_zero;     // of codes that in0 holds: the q that stands for 0
  float in_low, in_step;  // of codes that in0 holds, where a step reads them as numbers

  const float* gain;   // (channels of the result,) or null; likewise:
  const float* shift;
  const float* slope;

  // Windows: products, poolings; stride also for copies.
  int64_t kernel_rows, kernel_columns, stride_rows, stride_columns;
  int64_t padding_rows, padding_columns, dilation_rows, dilation_columns;
  int64_t groups;

  // Products. Either bits: (bases, filters, row_bytes) as docs/FORMAT.md 4.1 packs them; or float
  // weights (filters, kernel_rows, kernel_columns, channels of a group) and row_bytes 0.
  const uint8_t* packed_bits;
  int64_t row_bytes;
  const float* weight;
  const float* base_scale;  // (bases, filters) or null
  int64_t bases;
  int32_t pad_value;   // what the border counts as, 0 or 1; codes: 0 alone
  int32_t kernel;      // index among the candidates for this step, or -1 for the first

  int64_t channel_offset;  // copies
  int64_t filters;         // products: channels of the result
} bp_step;

typedef struct bp_program_spec {
  int32_t isa;          // bp_isa
  int32_t threads;      // 1 or more
  int64_t max_images;   // largest batch that is computed at once; a larger one is cut up
  int64_t arena_bytes;  // per image, for all values
  int64_t value_count;
  const bp_value* values;
  int64_t step_count;
  const bp_step* steps;
} bp_program_spec;

typedef struct bp_program bp_program;

// Status of the functions below: 0, or one of these with a sentence in `error`.
enum bp_status { BP_OK = 0, BP_INVALID = 1, BP_UNSUPPORTED = 2, BP_NO_MEMORY = 3 };

BP_API int32_t bp_abi_version(void);
// The sizes of bp_value, bp_step and bp_program_spec, 16 bits each, the first lowest: who calls a
// library that was built of another header sees it, even where nobody thought of the version.
BP_API int64_t bp_abi_sizes(void);
// Lower case name of an instruction set, "" where there is none of that number.
BP_API const char* bp_isa_name(int32_t isa);
// Whether this build has the kernels and this processor and system can run them.
BP_API int32_t bp_isa_available(int32_t isa);

// How many kernels can compute the step, fastest guess first, and their names. The step's pointers
// to weights are not read.
BP_API int32_t bp_kernel_count(int32_t isa, const bp_step* step, const bp_value* in0);
BP_API const char* bp_kernel_name(int32_t isa, const bp_step* step, const bp_value* in0,
                                  int32_t kernel);
// Seconds that one run of a product takes, the median of `repeats` on made-up weights and inputs;
// negative where it could not be measured. For the choice among kernels.
BP_API double bp_time_product(int32_t isa, int32_t threads, const bp_step* step,
                              const bp_value* in0, int32_t kernel, int64_t images,
                              int32_t repeats);
// Multiply-accumulates per second, in one thread, of the loop behind a kernel on data in cache:
// what a layer can reach at most. 0 where the instruction set has no such loop.
BP_API double bp_ceiling(int32_t isa, const char* kernel);

// Nothing that the spec points to is needed afterwards. The arena is memory that is only reserved
// (MAP_NORESERVE): pages are had when a run first touches them, so that max_images costs nothing
// before such a batch comes, and a system without memory then ends the process, not the call.
BP_API int32_t bp_program_create(const bp_program_spec* spec, bp_program** program, char* error,
                                 int64_t error_bytes);
BP_API void bp_program_destroy(bp_program* program);
// x: float32 (images, C, H, W) of the input step's value, y: float32, room for the output of each
// image. Any thread may call it; calls on one program wait for each other.
BP_API int32_t bp_program_run(bp_program* program, const float* x, int64_t images, float* y);
// Bytes of repacked weights and per-channel numbers; bytes of the arena and of scratch memory that
// a batch of `images` touches.
BP_API int64_t bp_program_weight_bytes(const bp_program* program);
BP_API int64_t bp_program_arena_bytes(const bp_program* program, int64_t images);
BP_API int64_t bp_program_scratch_bytes(const bp_program* program);

#ifdef __cplusplus
}
#endif
