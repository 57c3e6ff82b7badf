#include "memory.h"

#include <stdlib.h>
#include <sys/mman.h>

#include <new>
#include <utility>

#include "fences.h"

namespace bitpress {
namespace {

// Between arrays, and on both sides of a memory.
constexpr int64_t kFenceBytes = kFences ? kAlignment : 0;

}  // namespace

#if defined(BITPRESS_FENCES)

// The sanitizer knows what is beyond the ends of memory that calloc gave.
Memory::Memory(int64_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  if (bytes > INT64_MAX - 2 * kFenceBytes) throw std::bad_alloc();
  whole_ = calloc(static_cast<size_t>(bytes + 2 * kFenceBytes), 1);
  if (whole_ == nullptr) throw std::bad_alloc();
  auto* begin = static_cast<uint8_t*>(whole_);
  const auto at = reinterpret_cast<uintptr_t>(begin);
  data_ = begin + ((at + kAlignment) / kAlignment * kAlignment - at);
  fence(begin, data_ - begin);
  fence(data_ + bytes, begin + 2 * kFenceBytes - data_);
}

void Memory::free_all() {
  if (data_ == nullptr) return;
  take_down_fence(static_cast<uint8_t*>(whole_), bytes_ + 2 * kFenceBytes);
  free(whole_);
}

#else

Memory::Memory(int64_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* mapped = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<uint8_t*>(mapped);
}

void Memory::free_all() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
}

#endif

Memory::Memory(Memory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), whole_(std::exchange(other.whole_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(whole_, other.whole_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Memory::~Memory() { free_all(); }

int64_t bytes_of(int64_t a, int64_t b, int64_t c, int64_t d) {
  int64_t product = a;
  for (int64_t factor : {b, c, d}) {
    if (__builtin_mul_overflow(product, factor, &product)) throw std::bad_alloc();
  }
  return product;
}

void Layout::grow(int64_t count, int64_t size) {
  const int64_t bytes = bytes_of(count, size);
  if (bytes > INT64_MAX - kAlignment - kFenceBytes - bytes_) throw std::bad_alloc();
  const int64_t end = bytes_ + bytes;
  const int64_t next = round_up(end, kAlignment) + kFenceBytes;
  if (base_ != nullptr) {  // what lay there before had its fences elsewhere
    take_down_fence(base_ + bytes_, bytes);
    fence(base_ + end, next - end);
  }
  bytes_ = next;
}

}  // namespace bitpress
