// Holds every kernel of every instruction set to the plain reference, over programs drawn from a
// seed, through the C ABI alone. Ends with 1 at the first difference, which it describes.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "comparison.h"

namespace bitpress::check {

namespace {

struct Options {
  std::string isa;  // empty: all that can run here
  int64_t cases = 500;
  uint64_t seed = 1;
  int64_t first = 0;  // case to begin with
  int threads = 0;    // 0: as drawn
};

[[noreturn]] void usage() {
  std::fprintf(stderr,
               "usage: check_kernels [--isa NAME] [--cases N] [--seed S] [--first N] "
               "[--threads N]\n");
  std::exit(2);
}

Options parsed(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; i += 2) {
    if (i + 1 >= count) usage();
    const std::string name = arguments[i];
    const char* value = arguments[i + 1];
    if (name == "--isa") {
      options.isa = value;
    } else if (name == "--cases") {
      options.cases = std::atoll(value);
    } else if (name == "--seed") {
      options.seed = std::strtoull(value, nullptr, 10);
    } else if (name == "--first") {
      options.first = std::atoll(value);
    } else if (name == "--threads") {
      options.threads = std::atoi(value);
    } else {
      usage();
    }
  }
  return options;
}

// Each case has random numbers of its own, so that one can be run again without those before.
Case case_of(uint64_t seed, int64_t number) {
  Random random(seed * 1000003 + static_cast<uint64_t>(number));
  random.next();
  if (number % 16 == 7) return draw_extreme_case(random);
  if (number % 16 == 11) return draw_biased_case(random);
  if (number % 8 == 5) return draw_halfway_case(random);
  return draw_case(random, number % 32 == 30);
}

bool check(const Options& options, int32_t isa) {
  int64_t numbers = 0, runs = 0;
  for (int64_t i = options.first; i < options.first + options.cases; ++i) {
    Case drawn = case_of(options.seed, i);
    if (options.threads > 0) drawn.threads = options.threads;
    const Outcome outcome = compare(drawn, isa);
    if (!outcome.difference.empty()) {
      std::printf("%s: case %lld of seed %llu differs (--isa %s --seed %llu --first %lld): %s",
                  bp_isa_name(isa), static_cast<long long>(i),
                  static_cast<unsigned long long>(options.seed), bp_isa_name(isa),
                  static_cast<unsigned long long>(options.seed), static_cast<long long>(i),
                  outcome.difference.c_str());
      return false;
    }
    numbers += outcome.numbers;
    runs += outcome.runs;
  }
  std::printf("%s: %lld cases, %lld runs, %lld numbers as they should be\n", bp_isa_name(isa),
              static_cast<long long>(options.cases), static_cast<long long>(runs),
              static_cast<long long>(numbers));
  return true;
}

int run(const Options& options) {
  if (bp_abi_version() != BP_ABI_VERSION) {
    std::printf("the library has version %d of the interface, not %d\n", bp_abi_version(),
                BP_ABI_VERSION);
    return 1;
  }
  bool found = false;
  for (int32_t isa = 0; isa < BP_ISAS; ++isa) {
    if (!options.isa.empty() && options.isa != bp_isa_name(isa)) continue;
    if (!bp_isa_available(isa)) {
      std::printf("%s: not available here\n", bp_isa_name(isa));
      continue;
    }
    found = true;
    if (!check(options, isa)) return 1;
  }
  return found ? 0 : 1;
}

}  // namespace

}  // namespace bitpress::check

int main(int count, char** arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  return bitpress::check::run(bitpress::check::parsed(count, arguments));
}
