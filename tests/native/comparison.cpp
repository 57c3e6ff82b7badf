#include "comparison.h"

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <thread>

#include "reference.h"

namespace bitpress::check {

namespace {

struct Destroy {
  void operator()(bp_program* program) const { bp_program_destroy(program); }
};
using Program = std::unique_ptr<bp_program, Destroy>;

template <class... Arguments>
std::string text(const char* format, Arguments... arguments) {
  char line[512];
  std::snprintf(line, sizeof line, format, arguments...);
  return line;
}

// While it lives, the thread rounds another way than programs are to do.
class OddRounding {
 public:
  explicit OddRounding(bool wanted) : before_(std::fegetround()) {
    if (wanted) std::fesetround(FE_UPWARD);
    set_ = std::fegetround();
  }
  ~OddRounding() { std::fesetround(before_); }
  bool kept() const { return std::fegetround() == set_; }

 private:
  int before_, set_;
};

// What a program makes of the case's input; or a sentence in `error`.
struct Run {
  std::vector<float> y;
  std::string error;
};

Run run(const Draft& draft, const Case& drawn, int32_t isa, int threads, int64_t max_images,
        bool twice_at_once = false, bool odd_rounding = false) {
  Run done;
  char error[512] = "";
  bp_program* made = nullptr;
  const bp_program_spec spec = draft.spec(isa, threads, max_images);
  if (bp_program_create(&spec, &made, error, sizeof error) != BP_OK) {
    done.error = std::string("bp_program_create: ") + error;
    return done;
  }
  const Program program(made);
  const int64_t each = elements(draft.values()[draft.steps().back().in0]);
  done.y.assign(drawn.images * each, NAN);
  int32_t status = BP_OK;
  if (twice_at_once) {
    std::vector<float> other(done.y.size());
    int32_t other_status = BP_OK;
    std::thread second([&] {
      other_status = bp_program_run(program.get(), drawn.x.data(), drawn.images, other.data());
    });
    status = bp_program_run(program.get(), drawn.x.data(), drawn.images, done.y.data());
    second.join();
    status = std::max(status, other_status);
    if (std::memcmp(other.data(), done.y.data(), other.size() * sizeof(float)) != 0) {
      done.error = "two calls at once came to different results";
    }
  } else {
    const OddRounding rounding(odd_rounding);
    status = bp_program_run(program.get(), drawn.x.data(), drawn.images, done.y.data());
    if (!rounding.kept()) done.error = "a run changed how its caller rounds";
  }
  if (status != BP_OK) done.error = text("bp_program_run: status %d", status);
  if (bp_program_weight_bytes(program.get()) < 0 || bp_program_scratch_bytes(program.get()) < 0 ||
      bp_program_arena_bytes(program.get(), drawn.images) < 0) {
    done.error = "a number of bytes is negative";
  }
  return done;
}

// The values of a draft out of the vector that shows them all, channels last.
std::vector<Numbers> shown_values(const Draft& draft, size_t count,
                                  const std::vector<int64_t>& begins, const Case& drawn,
                                  const std::vector<float>& y) {
  const int64_t each = static_cast<int64_t>(y.size()) / drawn.images;
  std::vector<Numbers> values(count);
  for (size_t i = 0; i < count; ++i) {
    const bp_value& value = draft.values()[i];
    values[i].resize(drawn.images * elements(value));
    for (int64_t image = 0; image < drawn.images; ++image) {
      const float* from = y.data() + image * each + begins[i];
      for (int64_t c = 0; c < value.channels; ++c)
        for (int64_t pixel = 0; pixel < value.height * value.width; ++pixel)
          values[i][(image * value.height * value.width + pixel) * value.channels + c] = *from++;
    }
  }
  return values;
}

// Where the channels that a step writes lie in its value.
struct Channels {
  int64_t first, count, all;
  int64_t place(size_t i) const {
    const int64_t pixel = static_cast<int64_t>(i) / count;
    return pixel * all + first + static_cast<int64_t>(i) % count;
  }
};

// What a zero step leaves: all channels that no copy fills afterwards.
std::string compare_zero(const Draft& draft, const bp_step& zero, const Numbers& found) {
  const int value = zero.out_f32 != kNone ? zero.out_f32 : zero.out_u8;
  const int64_t channels = draft.values()[value].channels;
  std::vector<bool> filled(channels);
  for (const bp_step& step : draft.steps()) {
    if (step.kind != BP_COPY || (step.out_f32 != value && step.out_u8 != value)) continue;
    const int64_t count = draft.values()[step.in0].channels;
    for (int64_t c = 0; c < count; ++c) filled[step.channel_offset + c] = true;
  }
  const float wanted = zero.out_f32 != kNone ? 0.0f : static_cast<float>(zero.in_zero);
  for (size_t i = 0; i < found.size(); ++i) {
    const int64_t c = static_cast<int64_t>(i) % channels;
    if (!filled[c] && found[i] != wanted) {
      return text("channel %lld: %.9g instead of %g", static_cast<long long>(c), found[i], wanted);
    }
  }
  return "";
}

std::string compare_step(const Draft& draft, const bp_step& step,
                         const std::vector<Numbers>& values, const Case& drawn, int64_t& count) {
  if (step.kind == BP_ZERO) {
    return compare_zero(draft, step, values[step.out_f32 != kNone ? step.out_f32 : step.out_u8]);
  }
  const Result wanted = compute(draft, step, values, drawn.x, drawn.images);
  count += static_cast<int64_t>(wanted.numbers.size());
  const int64_t all = draft.values()[step.out_f32 != kNone ? step.out_f32 : step.out_u8].channels;
  const bool part = step.kind == BP_COPY;
  const Channels channels{part ? step.channel_offset : 0,
                          part ? draft.values()[step.in0].channels : all, all};
  for (size_t i = 0; i < wanted.numbers.size(); ++i) {
    const int64_t place = channels.place(i);
    const float x = wanted.numbers[i];
    const double tolerance = wanted.tolerance[i];
    if (step.out_f32 != kNone) {
      const float found = values[step.out_f32][place];
      if (!(std::fabs(static_cast<double>(found) - x) <= tolerance)) {
        return text("number %lld (channel %lld): %.9g instead of %.9g, tolerance %g",
                    static_cast<long long>(place), static_cast<long long>(place % all), found, x,
                    tolerance);
      }
    }
    if (step.out_u8 != kNone) {
      float least = x, most = x;
      if (!wanted.codes) {
        const bool known = step.out_f32 != kNone;
        const float low = known ? values[step.out_f32][place] : static_cast<float>(x - tolerance);
        const float high = known ? low : static_cast<float>(x + tolerance);
        least = quantized(low, step.low, step.step, step.bits);
        most = quantized(high, step.low, step.step, step.bits);
      }
      const float found = values[step.out_u8][place];
      if (!(found >= least && found <= most)) {
        return text("code %lld (channel %lld): %g instead of %g to %g, of %.9g",
                    static_cast<long long>(place), static_cast<long long>(place % all), found,
                    least, most, x);
      }
    }
  }
  return "";
}

std::string compare_values(const Draft& draft, const std::vector<Numbers>& values,
                           const Case& drawn, int64_t& count) {
  for (int guard : draft.guards()) {
    if (static_cast<size_t>(guard) >= values.size()) break;
    for (float number : values[guard]) {
      if (number != 0) return text("something wrote behind value %d", guard - 1);
    }
  }
  for (size_t i = 0; i < draft.steps().size(); ++i) {
    const std::string found = compare_step(draft, draft.steps()[i], values, drawn, count);
    if (!found.empty()) return text("step %zu: ", i) + found;
  }
  return "";
}

int kernel_count(const Draft& draft, const bp_step& step, int32_t isa) {
  return bp_kernel_count(isa, &step, &draft.values()[step.in0]);
}

// Which kernel each product takes in a round of runs.
std::string chosen_kernels(const Draft& draft, int32_t isa) {
  std::string names;
  for (const bp_step& step : draft.steps()) {
    if (step.kind != BP_PRODUCT) continue;
    const char* name = bp_kernel_name(isa, &step, &draft.values()[step.in0], step.kernel);
    names += std::string(" ") + (name ? name : "?");
  }
  return names;
}

// Measures each kernel of each product once: that it can be, not how long it takes.
std::string measure_kernels(const Case& drawn, int32_t isa) {
  for (const bp_step& step : drawn.draft.steps()) {
    if (step.kind != BP_PRODUCT) continue;
    const bp_value& in0 = drawn.draft.values()[step.in0];
    for (int kernel = 0; kernel < kernel_count(drawn.draft, step, isa); ++kernel) {
      const double seconds =
          bp_time_product(isa, drawn.threads, &step, &in0, kernel, drawn.images, 1);
      if (!(seconds >= 0)) return text("kernel %d cannot be measured", kernel);
    }
  }
  return "";
}

}  // namespace

Outcome compare(const Case& drawn, int32_t isa) {
  Outcome outcome;
  int rounds = 1;
  for (const bp_step& step : drawn.draft.steps()) {
    if (step.kind != BP_PRODUCT) continue;
    const int count = kernel_count(drawn.draft, step, isa);
    rounds = std::max(rounds, count);
    if (count < 1) outcome.difference = "no kernel for a product";
  }
  if (outcome.difference.empty()) outcome.difference = measure_kernels(drawn, isa);
  for (int round = 0; round < rounds && outcome.difference.empty(); ++round) {
    Draft draft = drawn.draft;
    for (bp_step& step : draft.steps()) {
      if (step.kind == BP_PRODUCT) step.kernel = round % kernel_count(draft, step, isa);
    }
    const std::string kernels = chosen_kernels(draft, isa);
    Draft shown = draft;
    const std::vector<int64_t> begins = show_all_values(shown);
    const Run done = run(shown, drawn, isa, drawn.threads, drawn.max_images);
    outcome.difference = done.error;
    if (done.error.empty()) {
      std::vector<Numbers> values =
          shown_values(shown, draft.values().size(), begins, drawn, done.y);
      // What a copy held, its last reader may have overwritten.
      for (const Draft::Copied& copied : draft.copies()) {
        values[copied.copy] = values[copied.original];
      }
      outcome.difference = compare_values(draft, values, drawn, outcome.numbers);
    }
    for (const bool odd_rounding : {false, true}) {
      if (!outcome.difference.empty()) break;
      const int threads = drawn.threads % 3 + 1;
      const bool at_once = round == 0 && !odd_rounding;
      const Run again = run(shown, drawn, isa, threads, drawn.images, at_once, odd_rounding);
      outcome.difference = again.error;
      if (again.error.empty() && again.y != done.y) {
        outcome.difference =
            text("other results with %d threads, %lld images at once%s", threads,
                 static_cast<long long>(drawn.images),
                 odd_rounding ? ", in a thread that rounds upward" : "");
      }
    }
    outcome.runs += 3;
    if (!outcome.difference.empty()) {
      outcome.difference += text("\n  %lld images, %lld at once, %d threads, kernels:%s\n",
                                 static_cast<long long>(drawn.images),
                                 static_cast<long long>(drawn.max_images), drawn.threads,
                                 kernels.c_str()) +
                            draft.describe();
    }
  }
  return outcome;
}

}  // namespace bitpress::check
