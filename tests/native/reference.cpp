#include "reference.h"

#include <algorithm>
#include <cmath>

namespace bitpress::check {

namespace {

constexpr double kSumTolerance = 1e-5;  // of sum |x w|
constexpr double kRounding = 0x1p-22;   // of a few operations in float32

struct Shape {
  int64_t channels, height, width;

  explicit Shape(const bp_value& value)
      : channels(value.channels), height(value.height), width(value.width) {}
  int64_t at(int64_t image, int64_t y, int64_t x, int64_t c) const {
    return ((image * height + y) * width + x) * channels + c;
  }
  bool inside(int64_t y, int64_t x) const { return y >= 0 && y < height && x >= 0 && x < width; }
};

Shape shape_of_result(const Draft& draft, const bp_step& step) {
  return Shape(draft.values()[step.out_f32 != kNone ? step.out_f32 : step.out_u8]);
}

bool reads_codes(const Draft& draft, const bp_step& step) {
  return draft.values()[step.in0].type == BP_U8;
}

Result sized(const Shape& shape, int64_t images) {
  Result result;
  result.numbers.resize(images * shape.channels * shape.height * shape.width);
  result.tolerance.resize(result.numbers.size());
  return result;
}

// +1 or -1.
int sign_of_weight(const bp_step& step, int64_t basis, int64_t filter, int64_t bit) {
  const uint8_t* row = step.packed_bits + (basis * step.filters + filter) * step.row_bytes;
  return row[bit / 8] >> (bit % 8) & 1 ? 1 : -1;
}

// Sum and sum of magnitudes over the window of one result.
struct Sum {
  int64_t whole = 0;
  double real = 0, magnitude = 0;
};

Sum sum_of_window(const Draft& draft, const bp_step& step, const Numbers& in, int64_t basis,
                  int64_t image, int64_t row, int64_t column, int64_t filter) {
  const Shape source(draft.values()[step.in0]);
  const bool codes = reads_codes(draft, step);
  const int64_t channels = source.channels / step.groups;
  const int64_t first_channel = filter / (step.filters / step.groups) * channels;
  Sum sum;
  for (int64_t ky = 0; ky < step.kernel_rows; ++ky) {
    for (int64_t kx = 0; kx < step.kernel_columns; ++kx) {
      const int64_t y = row * step.stride_rows + ky * step.dilation_rows - step.padding_rows;
      const int64_t x =
          column * step.stride_columns + kx * step.dilation_columns - step.padding_columns;
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t place = (ky * step.kernel_columns + kx) * channels + c;
        const float number = source.inside(y, x) ? in[source.at(image, y, x, first_channel + c)]
                             : codes             ? static_cast<float>(step.in_zero)
                                                 : static_cast<float>(step.pad_value);
        if (codes) {
          const int64_t level = static_cast<int64_t>(number) - step.in_zero;
          sum.whole += level * sign_of_weight(step, basis, filter, place);
        } else {
          const int64_t kernel_size = step.kernel_rows * step.kernel_columns * channels;
          const double weight = step.weight
                                    ? step.weight[filter * kernel_size + place]
                                    : sign_of_weight(step, basis, filter, place);
          sum.real += weight * number;
          sum.magnitude += std::fabs(weight * number);
        }
      }
    }
  }
  return sum;
}

Result product(const Draft& draft, const bp_step& step, const Numbers& in, int64_t images) {
  const Shape shape = shape_of_result(draft, step);
  const bool codes = reads_codes(draft, step);
  Result result = sized(shape, images);
  for (int64_t image = 0; image < images; ++image) {
    for (int64_t y = 0; y < shape.height; ++y) {
      for (int64_t x = 0; x < shape.width; ++x) {
        for (int64_t n = 0; n < shape.channels; ++n) {
          const int64_t place = shape.at(image, y, x, n);
          float total = 0;
          double tolerance = 0;
          for (int64_t basis = 0; basis < step.bases; ++basis) {
            const Sum sum = sum_of_window(draft, step, in, basis, image, y, x, n);
            float z = codes ? static_cast<float>(sum.whole) : static_cast<float>(sum.real);
            double magnitude = sum.magnitude;
            if (step.base_scale) {
              const float scale = step.base_scale[basis * step.filters + n];
              z = scale * z;
              magnitude *= std::fabs(scale);
            }
            total = basis == 0 ? z : total + z;
            if (!codes) tolerance += kSumTolerance * magnitude;
          }
          result.numbers[place] = total;
          result.tolerance[place] = tolerance;
        }
      }
    }
  }
  return result;
}

Result max_pool(const Draft& draft, const bp_step& step, const Numbers& in, int64_t images) {
  const Shape source(draft.values()[step.in0]);
  const Shape shape = shape_of_result(draft, step);
  Result result = sized(shape, images);
  result.codes = reads_codes(draft, step);
  for (int64_t image = 0; image < images; ++image) {
    for (int64_t row = 0; row < shape.height; ++row) {
      for (int64_t column = 0; column < shape.width; ++column) {
        for (int64_t c = 0; c < shape.channels; ++c) {
          float greatest = -INFINITY;
          for (int64_t ky = 0; ky < step.kernel_rows; ++ky) {
            for (int64_t kx = 0; kx < step.kernel_columns; ++kx) {
              const int64_t y = row * step.stride_rows + ky - step.padding_rows;
              const int64_t x = column * step.stride_columns + kx - step.padding_columns;
              if (source.inside(y, x)) greatest = std::max(greatest, in[source.at(image, y, x, c)]);
            }
          }
          result.numbers[shape.at(image, row, column, c)] = greatest;
        }
      }
    }
  }
  return result;
}

Result avg_pool(const Draft& draft, const bp_step& step, const Numbers& in, int64_t images) {
  const Shape source(draft.values()[step.in0]);
  const Shape shape = shape_of_result(draft, step);
  Result result = sized(shape, images);
  const float count = static_cast<float>(step.kernel_rows * step.kernel_columns);
  for (int64_t image = 0; image < images; ++image) {
    for (int64_t row = 0; row < shape.height; ++row) {
      for (int64_t column = 0; column < shape.width; ++column) {
        for (int64_t c = 0; c < shape.channels; ++c) {
          float sum = 0;
          for (int64_t ky = 0; ky < step.kernel_rows; ++ky) {
            for (int64_t kx = 0; kx < step.kernel_columns; ++kx) {
              const int64_t y = row * step.stride_rows + ky - step.padding_rows;
              const int64_t x = column * step.stride_columns + kx - step.padding_columns;
              if (source.inside(y, x)) sum = sum + in[source.at(image, y, x, c)];
            }
          }
          result.numbers[shape.at(image, row, column, c)] = sum / count;
        }
      }
    }
  }
  return result;
}

Result sign(const Draft& draft, const bp_step& step, const Numbers& in, int64_t images) {
  const Shape shape = shape_of_result(draft, step);
  Result result = sized(shape, images);
  for (size_t i = 0; i < in.size(); ++i) {
    const int64_t c = static_cast<int64_t>(i) % shape.channels;
    const float x = step.gain ? step.gain[c] * in[i] : in[i];
    result.numbers[i] = x >= (step.shift ? step.shift[c] : 0.0f) ? 1.0f : -1.0f;
  }
  return result;
}

Result elementwise(const Draft& draft, const bp_step& step, const Numbers& in, int64_t images) {
  Result result = sized(shape_of_result(draft, step), images);
  result.numbers = in;
  if (reads_codes(draft, step)) {
    for (float& number : result.numbers) {
      const float scaled = step.in_step * number;
      number = scaled + step.in_low;
    }
  }
  return result;
}

Result transpose(const Draft& draft, const bp_step& step, const Numbers& in, int64_t images) {
  const Shape source(draft.values()[step.in0]);
  Result result = sized(shape_of_result(draft, step), images);
  result.codes = reads_codes(draft, step);
  size_t place = 0;
  for (int64_t image = 0; image < images; ++image)
    for (int64_t c = 0; c < source.channels; ++c)
      for (int64_t y = 0; y < source.height; ++y)
        for (int64_t x = 0; x < source.width; ++x)
          result.numbers[place++] = in[source.at(image, y, x, c)];
  return result;
}

// Of the channels of its result that the step writes.
Result copy(const Draft& draft, const bp_step& step, const Numbers& in, int64_t images) {
  const Shape source(draft.values()[step.in0]);
  Shape shape = shape_of_result(draft, step);
  shape.channels = source.channels;
  Result result = sized(shape, images);
  result.codes = reads_codes(draft, step);
  for (int64_t image = 0; image < images; ++image)
    for (int64_t y = 0; y < shape.height; ++y)
      for (int64_t x = 0; x < shape.width; ++x)
        for (int64_t c = 0; c < shape.channels; ++c)
          result.numbers[shape.at(image, y, x, c)] =
              in[source.at(image, y * step.stride_rows, x * step.stride_columns, c)];
  return result;
}

Result input(const Draft& draft, const bp_step& step, const Numbers& x, int64_t images) {
  const Shape shape = shape_of_result(draft, step);
  Result result = sized(shape, images);
  size_t place = 0;
  for (int64_t image = 0; image < images; ++image)
    for (int64_t c = 0; c < shape.channels; ++c)
      for (int64_t row = 0; row < shape.height; ++row)
        for (int64_t column = 0; column < shape.width; ++column)
          result.numbers[shape.at(image, row, column, c)] = x[place++];
  return result;
}

float activated(const bp_step& step, int64_t c, float x) {
  switch (step.activation) {
    case BP_RELU:
      return std::max(x, 0.0f);
    case BP_HARDTANH:
      return std::min(std::max(x, step.activation_low), step.activation_high);
    case BP_PRELU:
      return x >= 0 ? x : step.slope[c] * x;
    default:
      return x;
  }
}

// Gain, shift, residual and activation, in the order and rounding of abi.h.
void finish(const Draft& draft, const bp_step& step, const std::vector<Numbers>& values,
            Result& result) {
  const int64_t channels = shape_of_result(draft, step).channels;
  for (size_t i = 0; i < result.numbers.size(); ++i) {
    const int64_t c = static_cast<int64_t>(i) % channels;
    float x = result.numbers[i];
    double& tolerance = result.tolerance[i];
    double greatest = std::fabs(x);  // that occurs on the way
    const auto occurs = [&] { greatest = std::max<double>(greatest, std::fabs(x)); };
    if (step.gain) {
      x = step.gain[c] * x;
      greatest = std::fabs(x);
      tolerance *= std::fabs(step.gain[c]);
    }
    if (step.shift) x = x + step.shift[c], occurs();
    if (step.in1 != kNone) x = x + values[step.in1][i], occurs();
    if (step.activation == BP_PRELU) tolerance *= std::max(1.0, std::fabs(1.0 * step.slope[c]));
    x = activated(step, c, x);
    occurs();
    if (tolerance > 0) tolerance += kRounding * greatest;
    result.numbers[i] = x;
  }
}

}  // namespace

int64_t windows(int64_t length, int64_t kernel, int64_t stride, int64_t padding,
                int64_t dilation) {
  const int64_t room = length + 2 * padding - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

float quantized(float x, float low, float step, int bits) {
  if (bits == 1) {
    const float half = step / 2;
    const float threshold = low + half;
    return x >= threshold ? 1.0f : 0.0f;
  }
  const float shifted = x - low;
  const float scaled = shifted / step;
  const float q = std::floor(scaled + 0.5f);
  return std::min(std::max(q, 0.0f), static_cast<float>((1 << bits) - 1));
}

Result compute(const Draft& draft, const bp_step& step, const std::vector<Numbers>& values,
               const Numbers& x, int64_t images) {
  static const Numbers kNothing;
  const Numbers& in = step.in0 == kNone ? kNothing : values[step.in0];
  Result result;
  switch (step.kind) {
    case BP_INPUT:
      result = input(draft, step, x, images);
      break;
    case BP_PRODUCT:
      result = product(draft, step, in, images);
      break;
    case BP_AVG_POOL:
      result = avg_pool(draft, step, in, images);
      break;
    case BP_ELEMENTWISE:
      result = elementwise(draft, step, in, images);
      break;
    case BP_MAX_POOL:
      return max_pool(draft, step, in, images);
    case BP_SIGN:
      return sign(draft, step, in, images);
    case BP_TRANSPOSE:
      return transpose(draft, step, in, images);
    case BP_COPY:
      return copy(draft, step, in, images);
    default:
      return result;
  }
  finish(draft, step, values, result);
  return result;
}

}  // namespace bitpress::check
