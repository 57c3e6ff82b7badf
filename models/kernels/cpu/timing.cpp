#include "timing.h"

#include <time.h>

#include <algorithm>
#include <new>
#include <vector>

#include "memory.h"
#include "pool.h"
#include "product.h"
#include "rounding.h"

namespace bitpress {
namespace {

double seconds() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Numbers that look like data: what is multiplied makes no difference, but float32 numbers must be
// neither denormal nor NaN.
void fill(uint8_t* bytes, int64_t count, uint8_t mask) {
  uint32_t state = 12345;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525 + 1013904223;
    bytes[i] = static_cast<uint8_t>(state >> 24) & mask;
  }
}

class OneStep final : public Task {
 public:
  OneStep(const Step& step, const Batch& batch, int threads)
      : step_(step), batch_(batch), team_(threads),
        scratch_bytes_(round_up(step.scratch_bytes(), kAlignment)),
        scratch_(bytes_of(scratch_bytes_, threads)) {}

  void begin(int members) noexcept override {
    team_.gather(members);
    team_.hand_out(step_.units(batch_.images), true, step_.stealable());
  }
  void work(int member) noexcept override {
    const UsualRounding rounding;
    step_.run(batch_, team_, member, scratch_.data() + member * scratch_bytes_);
  }

 private:
  const Step& step_;
  Batch batch_;
  Team team_;
  int64_t scratch_bytes_;
  Memory scratch_;
};

}  // namespace

double time_product(const KernelSet& set, int threads, const bp_step& wanted, const bp_value& in0,
                    const ProductKernel& kernel, int64_t images, int32_t repeats) {
  const Geometry g = geometry_of(wanted, in0);
  bp_step step = wanted;
  const int64_t bit_bytes = bytes_of(step.bases, step.filters, step.row_bytes);
  Memory bits(bit_bytes);
  fill(bits.data(), bit_bytes, 0xFF);
  Memory weights(kernel.bits ? 0 : bytes_of(step.filters, g.weights(), sizeof(float)));
  Memory numbers(bytes_of(step.bases, step.filters, sizeof(float)));
  std::fill_n(reinterpret_cast<float*>(numbers.data()), step.bases * step.filters, 0.01f);
  const auto* filters = reinterpret_cast<const float*>(numbers.data());
  step.packed_bits = bits.data();
  step.weight = reinterpret_cast<const float*>(weights.data());
  step.gain = step.shift = step.slope = filters;
  if (step.base_scale != nullptr) step.base_scale = filters;
  if (step.out_u8 >= 0) {
    step.bits = 8;
    step.low = 0;
    step.step = 1;
  }

  Slot in{0, in0.channels, in0.height, in0.width, in0.type == BP_U8};
  const int64_t in_bytes = round_up(in.bytes(), kAlignment);
  Slot out{in_bytes, step.filters, g.rows, g.columns, step.out_u8 >= 0};
  Memory arena(bytes_of(in_bytes + round_up(out.bytes(), kAlignment), images));
  if (in.codes) fill(arena.data(), bytes_of(in.bytes(), images), 0xFF);

  const Product product(step, in0, kernel, in,
                        Finishing(set, step, step.filters, Slot(), out.codes ? Slot() : out,
                                  out.codes ? out : Slot()));
  if (product.units(images) > Team::kMaxUnits) throw std::bad_alloc();  // more than can be shared
  OneStep task(product, Batch{images, arena.data(), nullptr, nullptr}, threads);
  run_in_pool(task, threads);  // warms up: caches, pages, threads
  std::vector<double> times(static_cast<size_t>(repeats));
  for (double& time : times) {
    const double begin = seconds();
    run_in_pool(task, threads);
    time = seconds() - begin;
  }
  const auto middle = times.begin() + repeats / 2;
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

}  // namespace bitpress
