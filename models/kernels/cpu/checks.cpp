#include "checks.h"

#include <math.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "geometry.h"
#include "kernel_set.h"
#include "memory.h"

namespace bitpress {
namespace {

constexpr int64_t kMaxCount = 1 << 20;   // of values, steps; and of a window's sizes
constexpr int64_t kMaxThreads = 1024;
constexpr int64_t kMaxBases = 64;
constexpr int64_t kMaxBytes = INT64_C(1) << 42;  // of the arena
constexpr int64_t kMaxCodeWeights = 8421504;     // 255 times as much still fits 32 bits

std::string text(int64_t number) { return std::to_string(number); }

void require(bool holds, const std::string& sentence) {
  if (!holds) throw Refusal(BP_INVALID, sentence);
}

bool between(int64_t number, int64_t low, int64_t high) { return low <= number && number <= high; }

int64_t number_bytes(const bp_value& value) { return value.type == BP_U8 ? 1 : 4; }

// Numbers of an image; the value's sizes are in bounds.
int64_t numbers(const bp_value& value) { return value.channels * value.height * value.width; }

bool same_shape(const bp_value& a, const bp_value& b) {
  return a.channels == b.channels && a.height == b.height && a.width == b.width;
}

class StepCheck {
 public:
  StepCheck(const bp_program_spec& spec, int64_t number, std::vector<bool>& written)
      : spec_(spec), step_(spec.steps[number]), number_(number), written_(written) {}

  void check() {
    need(between(step_.kind, BP_INPUT, BP_OUTPUT), "there is no step of kind " + text(step_.kind));
    const bool finishes = step_.kind == BP_INPUT || step_.kind == BP_PRODUCT ||
                          step_.kind == BP_AVG_POOL || step_.kind == BP_ELEMENTWISE;
    if (step_.kind == BP_INPUT) {
      need(step_.in0 == -1, "the input step reads no value");
    } else {
      if (step_.kind != BP_ZERO) read(step_.in0, "in0");
      need(step_.kind != BP_ZERO || step_.in0 == -1, "in0 is given where nothing is read");
    }
    if (step_.in1 != -1) {
      need(finishes, "in1 is given where nothing is added");
      read(step_.in1, "in1");
      need(value(step_.in1).type == BP_F32, "in1 is not float32");
    }
    check_outputs();
    if (finishes) check_finish();
    check_kind();
    for (int32_t out : {step_.out_f32, step_.out_u8}) {
      if (out != -1) written_[static_cast<size_t>(out)] = true;
    }
  }

 private:
  void need(bool holds, const std::string& defect) const {
    if (!holds) throw Refusal(BP_INVALID, "Step " + text(number_) + ": " + defect + ".");
  }

  const bp_value& value(int32_t index) const { return spec_.values[index]; }

  void index_of(int32_t index, const char* role) const {
    need(between(index, 0, spec_.value_count - 1),
         std::string(role) + " is " + text(index) + ", which is no value");
  }

  void read(int32_t index, const char* role) const {
    index_of(index, role);
    need(written_[static_cast<size_t>(index)],
         std::string(role) + " reads value " + text(index) + ", which no earlier step writes");
  }

  void check_outputs() const {
    if (step_.out_f32 != -1) {
      index_of(step_.out_f32, "out_f32");
      need(value(step_.out_f32).type == BP_F32, "out_f32 is not of float32");
    }
    if (step_.out_u8 != -1) {
      index_of(step_.out_u8, "out_u8");
      need(value(step_.out_u8).type == BP_U8, "out_u8 is not of codes");
    }
    const bool f32 = step_.out_f32 != -1, u8 = step_.out_u8 != -1;
    if (step_.kind == BP_OUTPUT) {
      need(!f32 && !u8, "the output step writes no value");
      return;
    }
    need(f32 || u8, "it writes nothing");
    if (f32 && u8) {
      need(same_shape(value(step_.out_f32), value(step_.out_u8)), "its outputs differ in shape");
    }
  }

  const bp_value& out() const {
    return value(step_.out_f32 != -1 ? step_.out_f32 : step_.out_u8);
  }

  void check_codes() const {
    if (step_.out_u8 == -1) return;
    const int32_t bits = step_.bits;
    need(bits == 8 || bits == 4 || bits == 2 || bits == 1, "bits is " + text(bits));
    need(isfinite(step_.low) && isfinite(step_.step) && step_.step > 0,
         "low and step of its codes are not finite, or step is not positive");
  }

  void check_finish() const {
    check_codes();
    need(between(step_.activation, BP_IDENTITY, BP_PRELU),
         "there is no activation " + text(step_.activation));
    need(step_.activation != BP_HARDTANH || step_.activation_low < step_.activation_high,
         "hardtanh's low is not less than its high");
    need(step_.activation != BP_PRELU || step_.slope != nullptr, "prelu has no slope");
    if (step_.in1 != -1) need(same_shape(value(step_.in1), out()), "in1 differs from the result");
  }

  void one_output_of_type(int32_t type) const {
    need(step_.out_f32 == -1 || step_.out_u8 == -1, "it writes one value alone");
    need(out().type == type, "what it writes is of another type");
  }

  void shape(int64_t channels, int64_t height, int64_t width) const {
    const bp_value& made = out();
    need(made.channels == channels && made.height == height && made.width == width,
         "its result is " + text(channels) + " x " + text(height) + " x " + text(width) +
             ", not " + text(made.channels) + " x " + text(made.height) + " x " +
             text(made.width));
  }

  void check_kind() const {
    switch (step_.kind) {
      case BP_PRODUCT:
        return check_whole_product();
      case BP_MAX_POOL:
      case BP_AVG_POOL:
        return check_pool();
      case BP_ELEMENTWISE: {
        const bp_value& in = value(step_.in0);
        need(in.type == BP_F32 || (isfinite(step_.in_low) && isfinite(step_.in_step)),
             "in_low and in_step are not finite");
        return shape(in.channels, in.height, in.width);
      }
      case BP_SIGN: {
        const bp_value& in = value(step_.in0);
        need(in.type == BP_F32, "in0 is not float32");
        one_output_of_type(BP_F32);
        return shape(in.channels, in.height, in.width);
      }
      case BP_COPY:
        return check_copy();
      case BP_ZERO:
        one_output_of_type(out().type);
        return need(between(step_.in_zero, 0, 255), "in_zero is " + text(step_.in_zero));
      case BP_TRANSPOSE: {
        const bp_value& in = value(step_.in0);
        one_output_of_type(in.type);
        return shape(numbers(in), 1, 1);
      }
      case BP_OUTPUT:
        return need(value(step_.in0).type == BP_F32, "in0 is not float32");
      default:
        return;
    }
  }

  void check_whole_product() const {
    const bp_value& in = value(step_.in0);
    check_product(step_, in, number_);
    const Geometry g = geometry_of(step_, in);
    shape(g.filters, g.rows, g.columns);
    need((step_.row_bytes != 0 ? static_cast<const void*>(step_.packed_bits) : step_.weight) !=
             nullptr,
         "it has no weights");
  }

  void check_pool() const {
    const bp_value& in = value(step_.in0);
    const bool average = step_.kind == BP_AVG_POOL;
    need(!average || in.type == BP_F32, "in0 is not float32");
    if (!average && in.type == BP_U8) {
      one_output_of_type(BP_U8);
    } else {
      check_codes();
    }
    const int64_t rows = step_.kernel_rows, columns = step_.kernel_columns;
    need(between(rows, 1, kMaxCount) && between(columns, 1, kMaxCount) &&
             between(step_.stride_rows, 1, kMaxCount) &&
             between(step_.stride_columns, 1, kMaxCount),
         "its kernel or stride is not at least 1");
    need(between(step_.padding_rows, 0, rows / 2) && between(step_.padding_columns, 0, columns / 2),
         "its padding is more than half its kernel");
    const int64_t made_rows =
        windows(in.height, rows, step_.stride_rows, step_.padding_rows, 1);
    const int64_t made_columns =
        windows(in.width, columns, step_.stride_columns, step_.padding_columns, 1);
    need(made_rows > 0 && made_columns > 0, "its kernel is larger than its padded input");
    shape(in.channels, made_rows, made_columns);
  }

  void check_copy() const {
    const bp_value& in = value(step_.in0);
    one_output_of_type(in.type);
    need(between(step_.stride_rows, 1, kMaxCount) && between(step_.stride_columns, 1, kMaxCount),
         "its stride is not at least 1");
    const bp_value& made = out();
    need(made.height == ceil_div(in.height, step_.stride_rows) &&
             made.width == ceil_div(in.width, step_.stride_columns),
         "its result has another height or width");
    need(between(step_.channel_offset, 0, made.channels - in.channels),
         "its channels do not fit the result");
  }

  const bp_program_spec& spec_;
  const bp_step& step_;
  int64_t number_;
  std::vector<bool>& written_;
};

}  // namespace

void check_value(const bp_value& value, int64_t number) {
  const std::string which = "Value " + text(number) + ": ";
  require(value.type == BP_F32 || value.type == BP_U8, which + "there is no such type.");
  int64_t bytes = number_bytes(value);
  for (int64_t size : {value.channels, value.height, value.width}) {
    require(size >= 1 && size <= kMaxBytes, which + "a size is not at least 1, or too large.");
    require(!__builtin_mul_overflow(bytes, size, &bytes) && bytes <= kMaxBytes,
            which + "it is too large.");
  }
}

void check_product(const bp_step& step, const bp_value& in, int64_t number) {
  const auto need = [&](bool holds, const std::string& defect) {
    require(holds, "Step " + text(number) + ": " + defect + ".");
  };
  for (int64_t size : {step.kernel_rows, step.kernel_columns, step.stride_rows,
                       step.stride_columns, step.dilation_rows, step.dilation_columns}) {
    need(between(size, 1, kMaxCount), "its kernel, stride or dilation is not at least 1");
  }
  need(between(step.padding_rows, 0, kMaxCount) && between(step.padding_columns, 0, kMaxCount),
       "its padding is negative, or too large");
  need(between(step.filters, 1, kMaxBytes), "it has no filters");
  need(step.groups >= 1 && in.channels % step.groups == 0 && step.filters % step.groups == 0,
       text(in.channels) + " to " + text(step.filters) + " channels in " + text(step.groups) +
           " groups");
  need(windows(in.height, step.kernel_rows, step.stride_rows, step.padding_rows,
               step.dilation_rows) > 0 &&
           windows(in.width, step.kernel_columns, step.stride_columns, step.padding_columns,
                   step.dilation_columns) > 0,
       "its kernel is larger than its padded input");
  need(step.pad_value == 0 || (step.pad_value == 1 && in.type == BP_F32),
       "pad_value is " + text(step.pad_value));
  need(in.type == BP_F32 || between(step.in_zero, 0, 255), "in_zero is " + text(step.in_zero));
  need(between(step.bases, 1, kMaxBases), "it has " + text(step.bases) + " bases");

  int64_t weights = in.channels / step.groups, all = 0;
  need(!__builtin_mul_overflow(weights, step.kernel_rows * step.kernel_columns, &weights) &&
           !__builtin_mul_overflow(weights, step.filters * step.bases, &all) && all <= kMaxBytes,
       "it has too many weights");
  if (step.row_bytes == 0) {
    need(step.bases == 1 && step.base_scale == nullptr, "float weights have one basis, unscaled");
    if (in.type == BP_U8) {
      throw Refusal(BP_UNSUPPORTED, "Step " + text(number) +
                                        ": there are no products of float weights with codes.");
    }
    return;
  }
  need(step.row_bytes == ceil_div(weights, 8),
       "row_bytes is " + text(step.row_bytes) + " for " + text(weights) + " weights");
  if (in.type == BP_U8 && weights > kMaxCodeWeights) {
    throw Refusal(BP_UNSUPPORTED, "Step " + text(number) + ": sums of " + text(weights) +
                                      " codes do not fit 32 bits.");
  }
}

void check_program(const bp_program_spec& spec) {
  require(between(spec.threads, 1, kMaxThreads), "There are not 1 to 1024 threads.");
  require(between(spec.value_count, 1, kMaxCount) && spec.values != nullptr,
          "The program has no values, or too many.");
  require(between(spec.step_count, 1, kMaxCount) && spec.steps != nullptr,
          "The program has no steps, or too many.");
  int64_t arena = 0;
  require(spec.max_images >= 1 && spec.arena_bytes >= 0 &&
              !__builtin_mul_overflow(spec.max_images, spec.arena_bytes, &arena) &&
              arena <= kMaxBytes && spec.max_images <= kMaxBytes,
          "The arena for the largest batch is too large, or a size is negative.");
  for (int64_t i = 0; i < spec.value_count; ++i) {
    const bp_value& value = spec.values[i];
    check_value(value, i);
    require(value.offset >= 0 && value.offset % kAlignment == 0,
            "Value " + text(i) + ": its offset is not a multiple of 64.");
    require(value.offset <= spec.arena_bytes &&
                numbers(value) * number_bytes(value) <= spec.arena_bytes - value.offset,
            "Value " + text(i) + ": it reaches beyond the arena.");
  }
  std::vector<bool> written(static_cast<size_t>(spec.value_count));
  int64_t inputs = 0, outputs = 0;
  for (int64_t i = 0; i < spec.step_count; ++i) {
    StepCheck(spec, i, written).check();
    inputs += spec.steps[i].kind == BP_INPUT;
    outputs += spec.steps[i].kind == BP_OUTPUT;
  }
  require(inputs == 1 && outputs == 1, "A program has one input step and one output step.");
}

}  // namespace bitpress
