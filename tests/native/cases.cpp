#include "cases.h"

#include <algorithm>
#include <cmath>

#include "reference.h"

namespace bitpress::check {

namespace {

constexpr double kUsualWork = 4e5;  // multiplications for one image
constexpr double kLargeWork = 2e7;

class Drawing {
 public:
  Drawing(Random& random, bool large) : random_(random), large_(large) {}

  Case draw();

 private:
  // What is known of a value: about how large its numbers are, and what its codes stand for.
  struct Known {
    float scale = 1;
    int zero = 0;
    float low = 0, step = 1;
  };

  void draw_input();
  void draw_step();
  bool draw_product();
  bool draw_pool();
  void draw_elementwise();
  void draw_sign();
  void draw_transpose();
  void draw_join();

  int value_of_type(int32_t type);  // the latest ones are likelier; kNone
  int any_value();
  const bp_value& at(int value) const { return case_.draft.values()[value]; }
  bp_step& step(size_t index) { return case_.draft.steps()[index]; }
  size_t last_step() const { return case_.draft.steps().size() - 1; }
  std::vector<int> usable() const;
  bool is_free_to_read(int value) const;

  bool draw_geometry(bp_step& step, const bp_value& in);
  void draw_weights(bp_step& step, const bp_value& in);
  void draw_finish(size_t index, int64_t channels, float scale);
  void draw_outputs(size_t index, int64_t channels, int64_t height, int64_t width, float scale,
                    bool codes_allowed = true);
  int draw_zero(int levels);
  std::vector<float> numbers(int64_t count, float mean, float spread);
  Known& known(int value);

  Random& random_;
  bool large_;
  Case case_;
  std::vector<Known> known_;
};

Drawing::Known& Drawing::known(int value) {
  if (known_.size() <= static_cast<size_t>(value)) known_.resize(value + 1);
  return known_[value];
}

std::vector<float> Drawing::numbers(int64_t count, float mean, float spread) {
  std::vector<float> drawn(count);
  for (float& number : drawn) number = mean + spread * random_.normal();
  return drawn;
}

int Drawing::draw_zero(int levels) {
  const int zero = random_.pick({0, 0, levels / 2, levels / 2, levels - 1, 3});
  return std::min(zero, levels - 1);
}

// Neither a guard nor a copy, which is overwritten.
bool Drawing::is_free_to_read(int value) const {
  for (const Draft::Copied& copied : case_.draft.copies()) {
    if (copied.copy == value) return false;
  }
  return !case_.draft.is_guard(value);
}

std::vector<int> Drawing::usable() const {
  std::vector<int> found;
  for (size_t i = 0; i < case_.draft.values().size(); ++i) {
    if (is_free_to_read(static_cast<int>(i))) found.push_back(static_cast<int>(i));
  }
  return found;
}

int Drawing::any_value() {
  const std::vector<int> found = usable();
  if (random_.chance(0.6)) return found.back();
  return found[random_.between(0, static_cast<int64_t>(found.size()) - 1)];
}

int Drawing::value_of_type(int32_t type) {
  std::vector<int> found;
  for (int value : usable()) {
    if (at(value).type == type) found.push_back(value);
  }
  if (found.empty()) return kNone;
  if (random_.chance(0.6)) return found.back();
  return found[random_.between(0, static_cast<int64_t>(found.size()) - 1)];
}

// Outputs of a step that finishes: numbers, codes or both.
void Drawing::draw_outputs(size_t index, int64_t channels, int64_t height, int64_t width,
                           float scale, bool codes_allowed) {
  const int64_t form = codes_allowed ? random_.between(0, 2) : 0;
  if (form != 1) {
    const int made = case_.draft.add_value(channels, height, width, BP_F32);
    step(index).out_f32 = made;
    known(made).scale = scale;
  }
  if (form != 0) {
    const int made = case_.draft.add_value(channels, height, width, BP_U8);
    bp_step& writer = step(index);
    writer.out_u8 = made;
    writer.bits = random_.pick({8, 8, 8, 8, 4, 2, 1});
    const int levels = 1 << writer.bits;
    Known& codes = known(made);
    codes.zero = draw_zero(levels);
    // Steps of few significant bits, as calibration gives them, and any others.
    float width_of_step = scale * 4 / static_cast<float>(levels);
    if (random_.chance(0.5)) width_of_step = std::ldexp(1.0f, std::ilogb(width_of_step));
    writer.step = codes.step = width_of_step;
    writer.low = codes.low = -static_cast<float>(codes.zero) * width_of_step;
    codes.scale = static_cast<float>(levels);
  }
}

// Gain, shift and activation; `scale` is that of what they are applied to.
void Drawing::draw_finish(size_t index, int64_t channels, float scale) {
  if (random_.chance(0.7)) {
    const float* gain = case_.draft.keep(numbers(channels, 1 / scale, 0.5f / scale));
    step(index).gain = gain;
  }
  if (random_.chance(0.7)) {
    const float spread = step(index).gain ? 0.5f : 0.5f * scale;
    const float* shift = case_.draft.keep(numbers(channels, 0, spread));
    step(index).shift = shift;
  }
  step(index).activation =
      random_.pick({BP_IDENTITY, BP_RELU, BP_RELU, BP_HARDTANH, BP_PRELU});
  if (step(index).activation == BP_HARDTANH) {
    const float bound = step(index).gain ? 1 : scale;
    step(index).activation_low = -bound;
    step(index).activation_high = 0.8f * bound;
  } else if (step(index).activation == BP_PRELU) {
    const float* slope = case_.draft.keep(numbers(channels, 0.25f, 0.5f));
    step(index).slope = slope;
  }
}

void Drawing::draw_input() {
  const int64_t channels = random_.pick<int64_t>(
      {1, 3, 64, 128, random_.between(1, 17), random_.between(1, 70), random_.between(60, 200)});
  const int64_t largest = large_ ? 40 : channels > 70 ? 6 : 14;
  const int64_t height = random_.between(1, largest), width = random_.between(1, largest);
  case_.draft.add_step(BP_INPUT);
  const int64_t kind = random_.between(0, 3);
  const bool whole = kind != 0;  // codes just as given
  if (!whole) draw_finish(0, channels, 1);
  draw_outputs(0, channels, height, width, 1);
  if (whole && step(0).out_u8 != kNone) {
    step(0).bits = 8;
    step(0).low = 0;
    step(0).step = 1;
    known(step(0).out_u8).zero = draw_zero(256);
    known(step(0).out_u8).scale = 256;
  }
  case_.x.resize(case_.images * channels * height * width);
  const int64_t spread = random_.between(0, 4);
  for (float& number : case_.x) {
    if (step(0).out_u8 != kNone && whole) {
      number = static_cast<float>(spread == 0   ? 255
                                  : spread == 1 ? random_.pick({0, 255})
                                                : random_.between(0, 255));
    } else {
      number = spread == 0 ? 1.0f : spread == 1 ? 100 + random_.normal() : random_.normal();
    }
  }
  if (step(0).out_f32 != kNone) {
    const bool codes_too = whole && step(0).out_u8 != kNone;
    known(step(0).out_f32).scale = codes_too ? 128 : spread == 1 ? 100 : 1;
  }
}

// A window that fits `in`, and for products groups and filters; false where it found none.
bool Drawing::draw_geometry(bp_step& step, const bp_value& in) {
  const double most = large_ ? kLargeWork : kUsualWork;
  for (int attempt = 0; attempt < 20; ++attempt) {
    const bool whole_map = random_.chance(0.1);  // a linear layer
    const bool pointwise = !whole_map && random_.chance(0.3);
    step.groups = 1;
    if (random_.chance(0.2)) {
      const int64_t wanted = random_.between(2, 8);
      if (in.channels % wanted == 0) step.groups = wanted;
      if (random_.chance(0.3)) step.groups = in.channels;  // depthwise
    }
    const auto filters = [&] {
      return random_.pick<int64_t>({1, 64, large_ ? 256 : 128, random_.between(1, 20),
                                    random_.between(10, 70),
                                    random_.between(60, large_ ? 600 : 140)});
    };
    step.filters = step.groups * (step.groups == 1 ? filters() : random_.between(1, 20));
    const auto axis = [&](int64_t length, int64_t& kernel, int64_t& stride, int64_t& padding,
                          int64_t& dilation) {
      if (whole_map) {
        kernel = length;
        stride = dilation = 1;
        padding = 0;
        return;
      }
      kernel = pointwise ? 1 : random_.pick<int64_t>({1, 3, 3, random_.between(1, 7)});
      stride = random_.pick<int64_t>({1, 1, 2, random_.between(1, 4)});
      padding = pointwise && random_.chance(0.7) ? 0 : random_.between(0, 3);
      dilation = random_.pick<int64_t>({1, 1, 1, random_.between(1, 3)});
    };
    axis(in.height, step.kernel_rows, step.stride_rows, step.padding_rows, step.dilation_rows);
    axis(in.width, step.kernel_columns, step.stride_columns, step.padding_columns,
         step.dilation_columns);
    if (pointwise && random_.chance(0.7)) step.stride_rows = step.stride_columns = 1;
    const int64_t rows = windows(in.height, step.kernel_rows, step.stride_rows, step.padding_rows,
                                 step.dilation_rows);
    const int64_t columns = windows(in.width, step.kernel_columns, step.stride_columns,
                                    step.padding_columns, step.dilation_columns);
    const double work = static_cast<double>(rows * columns * step.filters) *
                        static_cast<double>(in.channels / step.groups) *
                        static_cast<double>(step.kernel_rows * step.kernel_columns);
    if (work > 0 && work <= most) return true;
  }
  return false;
}

void Drawing::draw_weights(bp_step& step, const bp_value& in) {
  const int64_t size = step.kernel_rows * step.kernel_columns * (in.channels / step.groups);
  if (in.type == BP_F32 && random_.chance(0.4)) {
    step.weight = case_.draft.keep(numbers(step.filters * size, 0, 1));
    return;
  }
  step.bases = random_.pick<int64_t>({1, 1, 1, 2, 3});
  step.row_bytes = (size + 7) / 8;
  std::vector<uint8_t> bits(step.bases * step.filters * step.row_bytes);
  const int64_t kind = random_.between(0, 7);  // 0: all -1, 1: all +1
  for (uint8_t& byte : bits) {
    byte = kind == 0 ? 0 : kind == 1 ? 255 : static_cast<uint8_t>(random_.next());
  }
  if (size % 8 != 0) {
    for (int64_t row = 0; row < step.bases * step.filters; ++row) {
      bits[(row + 1) * step.row_bytes - 1] &= static_cast<uint8_t>((1 << size % 8) - 1);
    }
  }
  step.packed_bits = case_.draft.keep(std::move(bits));
  if (random_.chance(0.4)) {
    step.base_scale = case_.draft.keep(numbers(step.bases * step.filters, 0.5f, 0.3f));
  }
}

bool Drawing::draw_product() {
  const int32_t type = random_.chance(0.6) ? BP_U8 : BP_F32;
  int in0 = value_of_type(type);
  if (in0 == kNone) in0 = any_value();
  const bp_value in = at(in0);
  bp_step product = case_.draft.add_step(BP_PRODUCT, in0);
  case_.draft.steps().pop_back();
  if (!draw_geometry(product, in)) return false;
  const int64_t rows = windows(in.height, product.kernel_rows, product.stride_rows,
                               product.padding_rows, product.dilation_rows);
  const int64_t columns = windows(in.width, product.kernel_columns, product.stride_columns,
                                  product.padding_columns, product.dilation_columns);
  float scale = known(in0).scale * std::sqrt(static_cast<float>(
                                       product.kernel_rows * product.kernel_columns *
                                       (in.channels / product.groups)));
  if (in.type == BP_U8) {
    product.in_zero = known(in0).zero;
    scale /= 2;
  } else if (random_.chance(0.3)) {
    product.pad_value = 1;
  }
  // Twice, where the second adds the result of the first.
  const bool residual = random_.chance(0.3);
  int first = kNone;
  for (int i = 0; i <= (residual ? 1 : 0); ++i) {
    bp_step drawn = product;
    draw_weights(drawn, in);
    if (drawn.weight) drawn.pad_value = drawn.pad_value && random_.chance(0.5);
    const bool in_place = first != kNone && random_.chance(0.5);
    if (in_place) first = case_.draft.add_copy(first);
    case_.draft.steps().push_back(drawn);
    const size_t index = last_step();
    draw_finish(index, product.filters, scale);
    const float finished = step(index).gain ? 1 : scale;
    step(index).in1 = first;
    draw_outputs(index, product.filters, rows, columns, finished, residual ? i == 1 : true);
    if (in_place && step(index).out_f32 != kNone) {
      case_.draft.take_place(step(index).out_f32, first);
    }
    first = step(index).out_f32;
  }
  return true;
}

bool Drawing::draw_pool() {
  const bool max = random_.chance(0.6);
  const int in0 = max ? any_value() : value_of_type(BP_F32);
  if (in0 == kNone) return false;
  const bp_value in = at(in0);
  bp_step pool = case_.draft.add_step(max ? BP_MAX_POOL : BP_AVG_POOL, in0);
  case_.draft.steps().pop_back();
  const bool global = random_.chance(0.2);
  const auto axis = [&](int64_t length, int64_t& kernel, int64_t& stride, int64_t& padding) {
    kernel = global ? length : random_.between(1, 4);
    stride = global ? 1 : random_.between(1, 3);
    padding = global ? 0 : random_.between(0, kernel / 2);
    return windows(length, kernel, stride, padding, 1);
  };
  const int64_t rows = axis(in.height, pool.kernel_rows, pool.stride_rows, pool.padding_rows);
  const int64_t columns =
      axis(in.width, pool.kernel_columns, pool.stride_columns, pool.padding_columns);
  if (rows < 1 || columns < 1) return false;
  case_.draft.steps().push_back(pool);
  const size_t index = last_step();
  if (in.type == BP_U8) {
    const Known codes = known(in0);
    const int made = case_.draft.add_value(in.channels, rows, columns, BP_U8);
    step(index).out_u8 = made;
    known(made) = codes;
    return true;
  }
  const float scale = known(in0).scale;
  if (!max) draw_finish(index, in.channels, scale);
  draw_outputs(index, in.channels, rows, columns, step(index).gain ? 1 : scale);
  return true;
}

void Drawing::draw_elementwise() {
  int in0 = any_value();
  const bp_value in = at(in0);
  float scale = known(in0).scale;
  const bool in_place = in.type == BP_F32 && random_.chance(0.4);
  if (in_place) in0 = case_.draft.add_copy(in0);
  case_.draft.add_step(BP_ELEMENTWISE, in0);
  const size_t index = last_step();
  if (in.type == BP_U8) {
    step(index).in_low = known(in0).low;
    step(index).in_step = known(in0).step;
    scale *= known(in0).step;
  }
  // Add what has the same shape, were it the value itself.
  if (random_.chance(0.5)) {
    for (int value : usable()) {
      const bp_value& other = at(value);
      if (other.type == BP_F32 && other.channels == in.channels && other.height == in.height &&
          other.width == in.width && !(in_place && value == in0)) {
        step(index).in1 = value;
      }
    }
  }
  draw_finish(index, in.channels, scale);
  draw_outputs(index, in.channels, in.height, in.width, step(index).gain ? 1 : scale);
  if (in_place && step(index).out_f32 != kNone) {
    case_.draft.take_place(step(index).out_f32, in0);
  }
}

void Drawing::draw_sign() {
  const int in0 = value_of_type(BP_F32);
  if (in0 == kNone) return;
  const bp_value in = at(in0);
  case_.draft.add_step(BP_SIGN, in0);
  const size_t index = last_step();
  if (random_.chance(0.5)) {
    std::vector<float> sense(in.channels);
    for (float& number : sense) number = static_cast<float>(random_.between(-1, 1));
    step(index).gain = case_.draft.keep(std::move(sense));
    step(index).shift = case_.draft.keep(numbers(in.channels, 0, known(in0).scale / 2));
  }
  const int made = case_.draft.add_value(in.channels, in.height, in.width, BP_F32);
  step(index).out_f32 = made;
}

void Drawing::draw_transpose() {
  const int in0 = any_value();
  const bp_value in = at(in0);
  const Known copied = known(in0);
  case_.draft.add_step(BP_TRANSPOSE, in0);
  const int made = case_.draft.add_value(elements(in), 1, 1, in.type);
  bp_step& writer = step(last_step());
  (in.type == BP_F32 ? writer.out_f32 : writer.out_u8) = made;
  known(made) = copied;
}

// Copies of one or two values next to each other, with zeros around them.
void Drawing::draw_join() {
  const int first = any_value();
  const bp_value in = at(first);
  const Known copied = known(first);
  const int64_t stride_rows = random_.between(1, 3), stride_columns = random_.between(1, 3);
  const int64_t rows = (in.height + stride_rows - 1) / stride_rows;
  const int64_t columns = (in.width + stride_columns - 1) / stride_columns;
  const int64_t before = random_.between(0, 5), after = random_.between(0, 5);
  const int64_t copies = random_.between(1, 2);
  const int made =
      case_.draft.add_value(before + copies * in.channels + after, rows, columns, in.type);
  known(made) = copied;
  const auto writes = [&](bp_step& writer) {
    (in.type == BP_F32 ? writer.out_f32 : writer.out_u8) = made;
  };
  if (before + after > 0) {
    bp_step& zero = case_.draft.add_step(BP_ZERO);
    zero.in_zero = in.type == BP_U8 ? copied.zero : 0;
    writes(zero);
  }
  for (int64_t i = 0; i < copies; ++i) {
    bp_step& copy = case_.draft.add_step(BP_COPY, first);
    copy.stride_rows = stride_rows;
    copy.stride_columns = stride_columns;
    copy.channel_offset = before + i * in.channels;
    writes(copy);
  }
}

void Drawing::draw_step() {
  const double kind = random_.uniform();
  if (kind < 0.6) {
    draw_product();
  } else if (kind < 0.75) {
    draw_pool();
  } else if (kind < 0.84) {
    draw_elementwise();
  } else if (kind < 0.89) {
    draw_sign();
  } else if (kind < 0.93) {
    draw_transpose();
  } else {
    draw_join();
  }
}

Case Drawing::draw() {
  case_.images = large_ ? random_.between(1, 2) : random_.pick<int64_t>({1, 1, 2, 3, 9});
  case_.max_images = random_.between(1, case_.images + 1);
  case_.threads = static_cast<int>(random_.between(1, 3));
  draw_input();
  const int64_t steps = large_ ? 1 : random_.between(1, 4);
  if (large_) {
    while (!draw_product()) {
    }
  } else {
    for (int64_t i = 0; i < steps; ++i) draw_step();
  }
  return std::move(case_);
}

}  // namespace

Case draw_case(Random& random, bool large) { return Drawing(random, large).draw(); }

Case draw_extreme_case(Random& random) {
  Case drawn;
  drawn.images = random.between(1, 3);
  drawn.max_images = drawn.images;
  drawn.threads = static_cast<int>(random.between(1, 3));
  const int64_t channels = random.between(200, 3000);
  const int64_t height = random.between(1, 3), width = random.between(1, 3);
  Draft& draft = drawn.draft;
  const int codes = draft.add_value(channels, height, width, BP_U8);
  draft.add_step(BP_INPUT).out_u8 = codes;
  drawn.x.assign(drawn.images * elements(draft.values()[codes]), 255.0f);
  if (random.chance(0.3)) {
    for (float& number : drawn.x) number = static_cast<float>(random.pick({0, 255}));
  }

  const bool pointwise = random.chance(0.5);
  bp_step product = draft.add_step(BP_PRODUCT, codes);
  draft.steps().pop_back();
  product.filters = random.between(1, 40);
  product.in_zero = random.pick({0, 0, 128, 255});
  if (!pointwise) {
    product.kernel_rows = height;
    product.kernel_columns = width;
  }
  const int64_t size = product.kernel_rows * product.kernel_columns * channels;
  product.row_bytes = (size + 7) / 8;
  std::vector<uint8_t> bits(product.filters * product.row_bytes);
  for (int64_t filter = 0; filter < product.filters; ++filter) {
    const int value = random.pick({0, 255, 255, 0x55});
    for (int64_t byte = 0; byte < product.row_bytes; ++byte) {
      bits[filter * product.row_bytes + byte] = static_cast<uint8_t>(value);
    }
    if (size % 8 != 0) {
      bits[(filter + 1) * product.row_bytes - 1] &= static_cast<uint8_t>((1 << size % 8) - 1);
    }
  }
  product.packed_bits = draft.keep(std::move(bits));
  product.out_f32 = draft.add_value(product.filters, pointwise ? height : 1,
                                    pointwise ? width : 1, BP_F32);
  draft.steps().push_back(product);
  return drawn;
}

Case draw_biased_case(Random& random) {
  Case drawn;
  drawn.images = drawn.max_images = random.between(1, 2);
  drawn.threads = static_cast<int>(random.between(1, 3));
  const bool map = random.chance(0.3);  // else a linear layer
  const int64_t channels =
      map ? random.between(512, 1024)
          : random.pick<int64_t>({1152, 4608, 9216, 25088, random.between(4608, 25088)});
  const int64_t side = map ? random.between(3, 4) : 1;
  Draft& draft = drawn.draft;
  const int numbers = draft.add_value(channels, side, side, BP_F32);
  draft.add_step(BP_INPUT).out_f32 = numbers;
  drawn.x.assign(drawn.images * elements(draft.values()[numbers]),
                 random.pick({0.1f, 0.3f, 0.7f, 2.55f}));

  bp_step product = draft.add_step(BP_PRODUCT, numbers);
  draft.steps().pop_back();
  product.filters = random.between(1, 40);
  if (map) {
    product.kernel_rows = product.kernel_columns = 3;
    product.padding_rows = product.padding_columns = random.between(0, 1);
  }
  const int64_t size = product.kernel_rows * product.kernel_columns * channels;
  if (random.chance(0.3)) {
    product.weight = draft.keep(std::vector<float>(product.filters * size, 1.0f));
  } else {
    product.row_bytes = (size + 7) / 8;
    std::vector<uint8_t> bits(product.filters * product.row_bytes, 255);
    for (int64_t row = 1; row <= product.filters && size % 8 != 0; ++row) {
      bits[row * product.row_bytes - 1] = static_cast<uint8_t>((1 << size % 8) - 1);
    }
    product.packed_bits = draft.keep(std::move(bits));
  }
  const int64_t made = windows(side, product.kernel_rows, 1, product.padding_rows, 1);
  product.out_f32 = draft.add_value(product.filters, made, made, BP_F32);
  draft.steps().push_back(product);
  return drawn;
}

Case draw_halfway_case(Random& random) {
  Case drawn;
  Draft& draft = drawn.draft;
  const int bits = random.pick({8, 8, 4, 2, 1});
  const int levels = 1 << bits;
  // A fraction of some bits, as calibration gives them, or of all.
  const int64_t fraction_bits = random.chance(0.7) ? random.between(2, 20) : 24;
  const int64_t fraction = random.between(int64_t{1} << (fraction_bits - 1),
                                          (int64_t{1} << fraction_bits) - 1);
  const auto step =
      std::ldexp(static_cast<float>(fraction), static_cast<int>(random.between(-30, 4)));
  const int zero = random.pick({0, 0, levels / 2, static_cast<int>(random.between(0, levels - 1))});
  const float low = -static_cast<float>(zero) * step;
  for (int q = -zero - 1; q <= levels - zero; ++q) {
    const auto between = static_cast<float>((q + 0.5) * static_cast<double>(step));
    float above = between, below = between;
    drawn.x.push_back(between);
    for (int i = 0; i < 3; ++i) {
      drawn.x.push_back(above = std::nextafter(above, INFINITY));
      drawn.x.push_back(below = std::nextafter(below, -INFINITY));
    }
  }
  const auto count = static_cast<int64_t>(drawn.x.size());
  bp_step& input = draft.add_step(BP_INPUT);
  input.bits = bits;
  input.step = step;
  input.low = low;
  input.out_u8 = draft.add_value(count, 1, 1, BP_U8);
  draft.steps()[0].out_f32 = draft.add_value(count, 1, 1, BP_F32);
  return drawn;
}

}  // namespace bitpress::check
