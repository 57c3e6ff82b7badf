// Hands damaged programs to the library: it must refuse them with a sentence, or run them without
// reading or writing out of bounds. That it does, the address sanitizer sees.
//
// An array of weights is as large as the step says, which only the caller can know. So every array
// points to the end of a memory that is larger than any array of a step that is tried.
#include <sys/mman.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "cases.h"

// Memory without end is not what is tried here: beyond this there is none.
void* operator new(size_t bytes) {
  void* memory = bytes <= size_t{1} << 28 ? std::malloc(bytes) : nullptr;
  if (!memory) throw std::bad_alloc();
  return memory;
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return std::malloc(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

// The sanitizers ask these functions how to act: malloc shall fail as it does elsewhere, and an
// error end in a signal, for the last words below.
extern "C" {
#define ASKED __attribute__((visibility("default")))
ASKED const char* __asan_default_options() {
  return "abort_on_error=1:allocator_may_return_null=1:max_allocation_size_mb=512";
}
ASKED const char* __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }
}

namespace bitpress::check {

namespace {

using Wide = unsigned __int128;

constexpr int64_t kArrayBytes = int64_t{1} << 26;
constexpr double kMostWork = 2e7;      // of a program that is run
constexpr int64_t kMostNumbers = int64_t{1} << 22;  // of input and output

// Readable memory before a page that is not.
class Arrays {
 public:
  Arrays() {
    const size_t page = 65536;
    auto* memory = static_cast<uint8_t*>(mmap(nullptr, kArrayBytes + page, PROT_READ | PROT_WRITE,
                                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory == MAP_FAILED) std::abort();
    mprotect(memory + kArrayBytes, page, PROT_NONE);
    end_ = memory + kArrayBytes;
  }
  // An array of `bytes` bytes that ends with the memory, or all of it.
  const void* of(Wide bytes) const {
    const Wide whole = (bytes + 3) / 4 * 4;
    return end_ - (whole < static_cast<Wide>(kArrayBytes) ? static_cast<int64_t>(whole)
                                                          : kArrayBytes);
  }

 private:
  const uint8_t* end_;
};

Wide count(int64_t number) { return number < 0 ? 0 : static_cast<Wide>(number); }

int64_t result_channels(const bp_program_spec& spec, const bp_step& step) {
  int64_t most = step.filters;
  for (int value : {step.out_f32, step.out_u8, step.in0}) {
    if (value < 0 || value >= spec.value_count) continue;
    if (spec.values[value].channels > most) most = spec.values[value].channels;
  }
  return most;
}

Wide weight_bytes(const bp_program_spec& spec, const bp_step& step) {
  if (step.in0 < 0 || step.in0 >= spec.value_count || step.groups < 1) return 0;
  const Wide taps = count(step.kernel_rows) * count(step.kernel_columns);
  return count(step.filters) * taps * count(spec.values[step.in0].channels / step.groups) * 4;
}

// Gives every array that a step has just the room that its fields speak of. False where that is
// more than there is here, though not so much that no caller could have it.
bool give_arrays(const Arrays& arrays, bp_program_spec& spec, bp_step& step) {
  const Wide channels = count(result_channels(spec, step)) * 4;
  const Wide scales = count(step.bases) * count(step.filters) * 4;
  const Wide bits = count(step.bases) * count(step.filters) * count(step.row_bytes);
  const Wide weights = weight_bytes(spec, step);
  for (Wide bytes : {channels, scales, bits, weights}) {
    if (bytes > static_cast<Wide>(kArrayBytes) && bytes < Wide{1} << 40) return false;
  }
  const auto give = [&](const float*& array, Wide bytes) {
    if (array) array = static_cast<const float*>(arrays.of(bytes));
  };
  give(step.gain, channels);
  give(step.shift, channels);
  give(step.slope, channels);
  give(step.base_scale, scales);
  give(step.weight, weights);
  if (step.packed_bits) step.packed_bits = static_cast<const uint8_t*>(arrays.of(bits));
  return true;
}

class Damage {
 public:
  Damage(Random& random, std::vector<bp_value>& values, std::vector<bp_step>& steps)
      : random_(random), values_(values), steps_(steps) {}

  void to_program(bp_program_spec& spec) {
    switch (random_.between(0, 7)) {
      case 0:
        spec.isa = static_cast<int32_t>(number(spec.isa));
        break;
      case 1:
        // Not a million threads, which are no damage but a wish.
        spec.threads = static_cast<int32_t>(random_.between(-2, 9));
        break;
      case 2:
        spec.max_images = number(spec.max_images);
        break;
      case 3:
        spec.arena_bytes = number(spec.arena_bytes);
        break;
      case 4:
        // More than there are would be read.
        spec.value_count = random_.between(-1, spec.value_count);
        break;
      case 5:
        spec.step_count = random_.between(-1, spec.step_count);
        break;
      case 6:
        std::swap(steps_[random_.between(0, spec.step_count - 1)],
                  steps_[random_.between(0, spec.step_count - 1)]);
        break;
      default:
        steps_[random_.between(0, spec.step_count - 1)] =
            steps_[random_.between(0, spec.step_count - 1)];
    }
  }

  void to_value() {
    bp_value& value = values_[random_.between(0, static_cast<int64_t>(values_.size()) - 1)];
    int64_t* const members[] = {&value.offset, &value.channels, &value.height, &value.width};
    const int64_t member = random_.between(0, 5);
    if (member < 4) {
      *members[member] = number(*members[member]);
    } else {
      value.type = static_cast<int32_t>(member == 4 ? random_.between(0, 1) : number(value.type));
    }
  }

  void to_step() {
    bp_step& step = steps_[random_.between(0, static_cast<int64_t>(steps_.size()) - 1)];
    switch (random_.between(0, 4)) {
      case 0:
        whole_numbers(step);
        break;
      case 1:
        indices(step);
        break;
      case 2:
        sizes(step);
        break;
      case 3:
        reals(step);
        break;
      default:
        pointers(step);
    }
  }

 private:
  // Something else in place of `now`; what overflows wraps around.
  int64_t number(int64_t now) {
    const auto whole = static_cast<uint64_t>(now);
    const uint64_t power = uint64_t{1} << random_.between(0, 62);
    switch (random_.between(0, 9)) {
      case 0:
        return static_cast<int64_t>(whole + 1);
      case 1:
        return static_cast<int64_t>(whole - 1);
      case 2:
        return static_cast<int64_t>(-whole);
      case 3:
        return static_cast<int64_t>(whole * 2);
      case 4:
        return random_.between(-3, 20);
      case 5:
        return random_.between(0, 5000);
      case 6:
        return random_.pick<int64_t>({INT64_MAX, INT64_MIN, INT64_MAX - 63, -64});
      case 7:
        return static_cast<int64_t>(power);
      case 8:
        return static_cast<int64_t>(whole + power - 1);
      default:
        return 0;
    }
  }

  void whole_numbers(bp_step& step) {
    int32_t* const members[] = {&step.kind,    &step.activation, &step.bits,
                                &step.in_zero, &step.pad_value,  &step.kernel};
    int32_t& member = *members[random_.between(0, 5)];
    member = static_cast<int32_t>(random_.chance(0.7) ? random_.between(-2, 12) : number(member));
  }

  void indices(bp_step& step) {
    int32_t* const members[] = {&step.in0, &step.in1, &step.out_f32, &step.out_u8};
    int32_t& member = *members[random_.between(0, 3)];
    const int64_t values = static_cast<int64_t>(values_.size());
    member = static_cast<int32_t>(random_.chance(0.8) ? random_.between(-2, values + 1)
                                                      : number(member));
  }

  void sizes(bp_step& step) {
    int64_t* const members[] = {
        &step.kernel_rows,  &step.kernel_columns,  &step.stride_rows,   &step.stride_columns,
        &step.padding_rows, &step.padding_columns, &step.dilation_rows, &step.dilation_columns,
        &step.groups,       &step.row_bytes,       &step.bases,         &step.channel_offset,
        &step.filters};
    int64_t& member = *members[random_.between(0, 12)];
    member = number(member);
  }

  void reals(bp_step& step) {
    float* const members[] = {&step.activation_low, &step.activation_high, &step.low,
                              &step.step,           &step.in_low,          &step.in_step};
    *members[random_.between(0, 5)] =
        random_.pick({0.0f, -1.0f, 1e38f, -1e38f, 1e-45f, std::strtof("nan", nullptr),
                      std::strtof("inf", nullptr), -std::strtof("inf", nullptr)});
  }

  // There or not there; where they point to is decided afterwards.
  void pointers(bp_step& step) {
    static const float kSomething = 1;
    const float** const members[] = {&step.gain, &step.shift, &step.slope, &step.weight,
                                     &step.base_scale};
    const int64_t member = random_.between(0, 5);
    if (member == 5) {
      step.packed_bits = step.packed_bits ? nullptr : reinterpret_cast<const uint8_t*>(&kSomething);
    } else {
      *members[member] = *members[member] ? nullptr : &kSomething;
    }
  }

  Random& random_;
  std::vector<bp_value>& values_;
  std::vector<bp_step>& steps_;
};

double work_of(const std::vector<bp_value>& values, const bp_step& step) {
  double work = 0;
  for (int value : {step.in0, step.out_f32, step.out_u8}) {
    if (value < 0 || value >= static_cast<int>(values.size())) continue;
    double each = static_cast<double>(values[value].channels) *
                  static_cast<double>(values[value].height) *
                  static_cast<double>(values[value].width);
    if (value != step.in0 && step.kind <= BP_AVG_POOL && step.kind != BP_INPUT) {
      each *= static_cast<double>(step.kernel_rows) * static_cast<double>(step.kernel_columns);
      if (step.kind == BP_PRODUCT && step.in0 >= 0) {
        each *= static_cast<double>(values[step.in0].channels) * static_cast<double>(step.bases);
      }
    }
    work += each;
  }
  return work;
}

struct Tally {
  int64_t refused = 0, run = 0, left = 0;
};

bool try_program(const bp_program_spec& spec, const std::vector<bp_value>& values,
                 const std::vector<bp_step>& steps, int64_t images, Tally& tally) {
  char error[200] = "";
  bp_program* program = nullptr;
  const int32_t status = bp_program_create(&spec, &program, error, sizeof error);
  if (status != BP_OK) {
    ++tally.refused;
    if (program) bp_program_destroy(program);
    const bool said = error[0] != 0 && std::memchr(error, 0, sizeof error) != nullptr;
    if (!said) std::printf("refused with status %d, but without a sentence\n", status);
    return said && status > 0 && status <= BP_NO_MEMORY;
  }
  double work = 0;
  int64_t x_numbers = 0, y_numbers = 0;
  for (int64_t i = 0; i < spec.step_count; ++i) {
    const bp_step& step = steps[i];
    work += work_of(values, step);
    if (step.kind == BP_INPUT) {
      x_numbers = elements(values[step.out_f32 >= 0 ? step.out_f32 : step.out_u8]);
    }
    if (step.kind == BP_OUTPUT) y_numbers = elements(values[step.in0]);
  }
  if (work * static_cast<double>(images) > kMostWork || x_numbers * images > kMostNumbers ||
      y_numbers * images > kMostNumbers) {
    ++tally.left;
  } else {
    std::vector<float> x(x_numbers * images, 1.0f), y(y_numbers * images);
    ++tally.run;
    bp_program_run(program, x.data(), images, y.data());
  }
  bp_program_destroy(program);
  return true;
}

bool check(const Arrays& arrays, uint64_t seed, int64_t number, Tally& tally) {
  Random random(seed * 1000003 + static_cast<uint64_t>(number));
  random.next();
  Case drawn = draw_case(random, false);
  Draft draft = drawn.draft;
  show_all_values(draft);
  std::vector<bp_value> values = draft.values();
  std::vector<bp_step> steps = draft.steps();
  int32_t isa = static_cast<int32_t>(random.between(0, BP_ISAS - 1));
  if (!bp_isa_available(isa)) isa = BP_PORTABLE;
  bp_program_spec spec = draft.spec(isa, drawn.threads, drawn.max_images);
  spec.values = values.data();
  spec.steps = steps.data();
  Damage damage(random, values, steps);
  for (int64_t i = random.between(1, 3); i > 0; --i) {
    const double where = random.uniform();
    if (where < 0.2) {
      damage.to_program(spec);
    } else if (where < 0.4) {
      damage.to_value();
    } else {
      damage.to_step();
    }
    if (spec.step_count < 1) break;
  }
  for (bp_step& step : steps) {
    if (!give_arrays(arrays, spec, step)) {
      ++tally.left;
      return true;
    }
    // Questions about a step that is not known to be right.
    if (step.in0 >= 0 && step.in0 < static_cast<int64_t>(values.size())) {
      const bp_value& in0 = values[step.in0];
      const int32_t kernels = bp_kernel_count(spec.isa, &step, &in0);
      if (!bp_kernel_name(spec.isa, &step, &in0, kernels)) return false;
      if (step.kind == BP_PRODUCT && work_of(values, step) < kMostWork) {
        bp_time_product(spec.isa, spec.threads, &step, &in0, step.kernel, drawn.images, 1);
      }
    }
  }
  return try_program(spec, values, steps, drawn.images, tally);
}

// The case at work, for the last words of a process that crashes.
int64_t g_case = 0;
uint64_t g_seed = 0;

void name_case() {
  std::printf("fails in case %lld of seed %llu (--seed %llu --first %lld --cases 1)\n",
              static_cast<long long>(g_case), static_cast<unsigned long long>(g_seed),
              static_cast<unsigned long long>(g_seed), static_cast<long long>(g_case));
  std::fflush(stdout);
}

void name_case_and_die(int signal) {
  name_case();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

int run(int64_t cases, uint64_t seed, int64_t first) {
  std::signal(SIGABRT, name_case_and_die);
#ifndef __SANITIZE_ADDRESS__
  for (int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) std::signal(signal, name_case_and_die);
#endif
  const Arrays arrays;
  Tally tally;
  g_seed = seed;
  for (int64_t i = first; i < first + cases; ++i) {
    g_case = i;
    if (!check(arrays, seed, i, tally)) {
      name_case();
      return 1;
    }
  }
  std::printf("%lld damaged programs: %lld refused, %lld run, %lld too large to try\n",
              static_cast<long long>(cases), static_cast<long long>(tally.refused),
              static_cast<long long>(tally.run), static_cast<long long>(tally.left));
  return 0;
}

}  // namespace

}  // namespace bitpress::check

int main(int count, char** arguments) {
  int64_t cases = 2000, first = 0;
  uint64_t seed = 1;
  for (int i = 1; i + 1 < count; i += 2) {
    const std::string name = arguments[i];
    if (name == "--cases") cases = std::atoll(arguments[i + 1]);
    if (name == "--seed") seed = std::strtoull(arguments[i + 1], nullptr, 10);
    if (name == "--first") first = std::atoll(arguments[i + 1]);
  }
  return bitpress::check::run(cases, seed, first);
}
