#include "draft.h"

#include <cstdio>

namespace bitpress::check {

int64_t elements(const bp_value& value) { return value.channels * value.height * value.width; }

const char* kind_name(int32_t kind) {
  static const char* const kNames[] = {"input", "product", "max_pool", "avg_pool",  "elementwise",
                                       "sign",  "copy",    "zero",     "transpose", "output"};
  return kind >= 0 && kind <= BP_OUTPUT ? kNames[kind] : "?";
}

int Draft::place(const bp_value& value) {
  values_.push_back(value);
  values_.back().offset = arena_bytes_;
  const int64_t bytes = elements(value) * (value.type == BP_F32 ? 4 : 1);
  arena_bytes_ += (bytes + 63) / 64 * 64;
  return static_cast<int>(values_.size()) - 1;
}

int Draft::add_value(int64_t channels, int64_t height, int64_t width, int32_t type) {
  bp_value value{};
  value.channels = channels;
  value.height = height;
  value.width = width;
  value.type = type;
  const int made = place(value);
  bp_value guard{};
  guard.channels = 64;
  guard.height = guard.width = 1;
  guard.type = BP_U8;
  guards_.push_back(place(guard));
  return made;
}

bp_step& Draft::add_step(int32_t kind, int in0) {
  bp_step step{};
  step.kind = kind;
  step.in0 = in0;
  step.in1 = step.out_f32 = step.out_u8 = kNone;
  step.kernel = kNone;
  step.step = step.in_step = 1;
  step.bits = 8;
  step.kernel_rows = step.kernel_columns = step.stride_rows = step.stride_columns = 1;
  step.dilation_rows = step.dilation_columns = step.groups = step.bases = 1;
  steps_.push_back(step);
  return steps_.back();
}

int Draft::add_copy(int original) {
  const bp_value value = values_[original];
  const int copy = add_value(value.channels, value.height, value.width, value.type);
  add_step(BP_COPY, original).out_f32 = copy;
  copies_.push_back({copy, original});
  return copy;
}

const float* Draft::keep(std::vector<float> array) {
  array.shrink_to_fit();
  floats_.push_back(std::move(array));
  return floats_.back().data();
}

const uint8_t* Draft::keep(std::vector<uint8_t> array) {
  array.shrink_to_fit();
  bytes_.push_back(std::move(array));
  return bytes_.back().data();
}

bool Draft::is_guard(int value) const {
  for (int guard : guards_)
    if (guard == value) return true;
  return false;
}

bp_program_spec Draft::spec(int32_t isa, int threads, int64_t max_images) const {
  bp_program_spec spec{};
  spec.isa = isa;
  spec.threads = threads;
  spec.max_images = max_images;
  spec.arena_bytes = arena_bytes_;
  spec.value_count = static_cast<int64_t>(values_.size());
  spec.values = values_.data();
  spec.step_count = static_cast<int64_t>(steps_.size());
  spec.steps = steps_.data();
  return spec;
}

std::vector<int64_t> show_all_values(Draft& draft) {
  const std::vector<bp_value> shown = draft.values();
  // Guards become zeros before anything else runs.
  std::vector<bp_step> steps;
  steps.swap(draft.steps());
  for (int guard : draft.guards()) draft.add_step(BP_ZERO).out_u8 = guard;
  for (const bp_step& step : steps) draft.steps().push_back(step);

  int64_t total = 0;
  for (const bp_value& value : shown) total += elements(value);
  const int all = draft.add_value(total, 1, 1, BP_F32);
  std::vector<int64_t> begins(shown.size());
  int64_t begin = 0;
  for (const bool guards : {false, true}) {
    for (size_t i = 0; i < shown.size(); ++i) {
      int source = static_cast<int>(i);
      if (draft.is_guard(source) != guards) continue;
      const bp_value& value = shown[i];
      if (value.type == BP_U8) {
        const int numbers = draft.add_value(value.channels, value.height, value.width, BP_F32);
        draft.add_step(BP_ELEMENTWISE, source).out_f32 = numbers;
        source = numbers;
      }
      if (value.height * value.width > 1) {
        const int vector = draft.add_value(elements(value), 1, 1, BP_F32);
        draft.add_step(BP_TRANSPOSE, source).out_f32 = vector;
        source = vector;
      }
      bp_step& copy = draft.add_step(BP_COPY, source);
      copy.out_f32 = all;
      copy.channel_offset = begins[i] = begin;
      begin += elements(value);
    }
  }
  draft.add_step(BP_OUTPUT, all);
  return begins;
}

namespace {

template <class... Arguments>
void append(std::string& text, const char* format, Arguments... arguments) {
  char line[256];
  std::snprintf(line, sizeof line, format, arguments...);
  text += line;
}

void describe_pair(std::string& text, const char* name, int64_t rows, int64_t columns,
                   int64_t usual) {
  if (rows != usual || columns != usual) {
    append(text, " %s=%lldx%lld", name, static_cast<long long>(rows),
           static_cast<long long>(columns));
  }
}

void describe_number(std::string& text, const char* name, int64_t number, int64_t usual) {
  if (number != usual) append(text, " %s=%lld", name, static_cast<long long>(number));
}

}  // namespace

std::string Draft::describe() const {
  std::string text;
  for (size_t i = 0; i < values_.size(); ++i) {
    if (is_guard(static_cast<int>(i))) continue;
    const bp_value& value = values_[i];
    append(text, "  value %zu: %s C=%lld H=%lld W=%lld at %lld\n", i,
           value.type == BP_F32 ? "f32" : "u8", static_cast<long long>(value.channels),
           static_cast<long long>(value.height), static_cast<long long>(value.width),
           static_cast<long long>(value.offset));
  }
  for (size_t i = 0; i < steps_.size(); ++i) {
    const bp_step& step = steps_[i];
    append(text, "  step %zu: %s", i, kind_name(step.kind));
    describe_number(text, "in0", step.in0, kNone);
    describe_number(text, "in1", step.in1, kNone);
    describe_number(text, "out_f32", step.out_f32, kNone);
    describe_number(text, "out_u8", step.out_u8, kNone);
    describe_pair(text, "kernel", step.kernel_rows, step.kernel_columns, 1);
    describe_pair(text, "stride", step.stride_rows, step.stride_columns, 1);
    describe_pair(text, "padding", step.padding_rows, step.padding_columns, 0);
    describe_pair(text, "dilation", step.dilation_rows, step.dilation_columns, 1);
    describe_number(text, "groups", step.groups, 1);
    describe_number(text, "filters", step.filters, 0);
    describe_number(text, "bases", step.bases, 1);
    describe_number(text, "pad_value", step.pad_value, 0);
    describe_number(text, "kernel", step.kernel, kNone);
    describe_number(text, "channel_offset", step.channel_offset, 0);
    describe_number(text, "in_zero", step.in_zero, 0);
    if (step.packed_bits) text += " bits";
    if (step.weight) text += " weight";
    if (step.base_scale) text += " base_scale";
    if (step.gain) text += " gain";
    if (step.shift) text += " shift";
    describe_number(text, "activation", step.activation, BP_IDENTITY);
    if (step.activation == BP_HARDTANH) {
      append(text, " (%g to %g)", step.activation_low, step.activation_high);
    }
    if (step.in_low != 0 || step.in_step != 1) {
      append(text, " in_low=%.9g in_step=%.9g", step.in_low, step.in_step);
    }
    if (step.out_u8 != kNone) {
      append(text, " low=%.9g step=%.9g q_bits=%d", step.low, step.step, step.bits);
    }
    text += '\n';
  }
  return text;
}

}  // namespace bitpress::check
