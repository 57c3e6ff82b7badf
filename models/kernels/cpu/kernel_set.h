// What an instruction set has to offer: the inner loops, and nothing of geometry.
//
// A product is computed in two parts. *Prepare* turns a row of pixels into *groups* of channels:
// for look-ups, the table of all sums of the group's activations; otherwise a padded copy.
// *Multiply* then sums, for a few pixels and a block of filters, one look-up or product per group.
// Preparing is done once per pixel and serves all filters and all taps of the kernel.
// models/kernels/cpu/product.cpp has the loops around.
//
// The symbols of a source file that is compiled for one instruction set must not leak into another:
// everything there is in an unnamed namespace, and neither std:: templates nor inline functions
// with external linkage are used.
#pragma once
#include <stdint.h>

#include "abi.h"

namespace bitpress {

constexpr int kMaxPixels = 16;  // that one call of multiply takes
constexpr int kAlignment = 64;  // of prepared rows, packed weights, sums, scratch

// Where multiply finds what prepare made. A window of the kernel is `segments` stretches of
// `groups` groups each; segment s of the first pixel begins at rows[s] + first_byte, that of each
// further pixel pixel_bytes on.
struct Window {
  const uint8_t* const* rows;
  int64_t first_byte;
  int64_t pixel_bytes;
  int64_t segments;
  int64_t groups;
};

// A kernel for products. Filters are taken `lanes` at a time, in blocks of 1 to `max_vectors` times
// as many; block sizes other than the last one's are max_vectors * lanes.
struct ProductKernel {
  const char* name;  // "lookup_i16", "expand_i8", "lookup_f32", "multiply_f32"; portable ones:
                     // "expand_i16", "expand_f32"
  int32_t input;     // bp_type of what it reads
  bool bits;         // its weights are bits, not float32
  int group_channels;  // channels in a group
  int group_bytes;     // of a prepared group
  int word_groups;     // groups that share one word of weights
  int word_bits;       // of a word of weights, per filter: 4, 8, 16, 32
  int lanes;
  int max_vectors;
  // Sums are 2 * (sum over the weights that are +1), less the window's sum: multiply leaves the
  // first half undone and finish completes it. Else multiply sums up +-1 times the input.
  bool sums_of_ones;

  // Make `pixels` prepared pixels out of rows of `channels` numbers (uint8 or float32), pixel p at
  // in + p * pitch (in numbers). A prepared pixel is ceil(channels / group_channels) groups, absent
  // channels count as 0; pixels follow each other. Where sums_of_ones, also sums[p], the sum of the
  // pixel's numbers. `out` is aligned to group_bytes alone (a border and what it surrounds are
  // prepared by separate calls), `in` and `sums` to their numbers. A pitch of 0 repeats one pixel.
  void (*prepare)(const void* in, int64_t pitch, int64_t pixels, int64_t channels, void* out,
                  int32_t* sums);

  // Packed weights to what multiply reads; null where that is the packed weights themselves.
  // `groups` groups of `vectors` * lanes filters, to `panel`, which has room for expanded_bytes *
  // vectors * lanes * groups. They are one segment's, or those of several where each segment is a
  // whole number of words; or a part of a segment's that begins with a word.
  void (*expand)(const void* weights, int vectors, int64_t groups, void* panel);
  int expanded_bytes;  // of a group of one filter

  // sums[p * sums_pitch + f] (int32 or float32, pitch in numbers) for 1..kMaxPixels pixels and
  // vectors * lanes filters; `accumulate`: add to what is there. int32 wraps around.
  //
  // Weights: for each segment ceil(groups / word_groups) words; word w of filter f of the block
  // stands at (w * vectors * lanes + f) * word_bits bits. The bits of group g of a word stand from
  // bit (g % word_groups) * group_channels on, channel 0 of the group lowest; absent ones are 0.
  // Float weights: for each segment and group, vectors * lanes float32 numbers.
  void (*multiply)(const Window& window, const void* weights, int vectors, int pixels, void* sums,
                   int64_t sums_pitch, bool accumulate);

  bool tables;  // what prepare makes are tables to look up in, not copies
};

// How to finish a tile of results (abi.h, bp_step), `pixels` x `channels`.
struct Finish {
  // What comes in: bases planes of sums, plane k at sums + k * basis_pitch, pixel p at + p *
  // sums_pitch (in numbers); int32 where integer. Then z = (sum << doubled) - window_sums[p] -
  // offset[k * offset_pitch + c], with the parts that there are.
  const void* sums;
  int64_t sums_pitch, basis_pitch, bases;
  bool integer;
  int doubled;                   // 0 or 1
  const int32_t* window_sums;    // (pixels,) or null
  const int32_t* offset;         // (bases, channels) or null
  int64_t offset_pitch;
  const float* base_scale;       // (bases, channels) or null
  int64_t base_scale_pitch;

  const float* gain;             // (channels,) or null, as the next two
  const float* shift;
  const float* slope;
  const float* residual;         // pixel p at + p * pitch, or null
  int32_t activation;
  float activation_low, activation_high;

  float* out_f32;                // pixel p at + p * pitch, or null
  uint8_t* out_u8;               // likewise
  int64_t pitch;                 // in numbers: channels of the whole map
  float low, step;
  int32_t bits;
};

struct KernelSet {
  int32_t isa;
  const char* name;
  const ProductKernel* const* products;  // ends with null
  // Exactly `channels` numbers of each pixel are written; any number, also 0. Integer sums, sums of
  // several bases and arrays of channels may be read up to the next multiple of 16 channels; other
  // sums may be a value that other threads write next to the pixels, and are not read beyond them.
  void (*finish)(const Finish& finish, int64_t pixels, int64_t channels);
  // out[c] = the greatest of in[0][c] .. in[inputs - 1][c], for 1 or more inputs; a NaN stays.
  // `out` may be one of them.
  void (*greatest_u8)(const uint8_t* const* in, int64_t inputs, int64_t count, uint8_t* out);
  void (*greatest_f32)(const float* const* in, int64_t inputs, int64_t count, float* out);
  // out[c] += in[c].
  void (*add_f32)(float* out, const float* in, int64_t count);
  // out[i] = in[i] * step + low, two roundings.
  void (*numbers_of_codes)(const uint8_t* in, float step, float low, float* out, int64_t count);
};

// Null where this build does not have the instruction set.
const KernelSet* portable_kernels();
const KernelSet* avx2_kernels();
const KernelSet* avx512_kernels();

// The set, or null where it is not built in or cannot run here.
const KernelSet* kernel_set(int32_t isa);

}  // namespace bitpress
