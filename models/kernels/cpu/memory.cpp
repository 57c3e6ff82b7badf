#include "memory.h"

#include <sys/mman.h>

#include <new>
#include <utility>

namespace bitpress {

Memory::Memory(int64_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* mapped = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<uint8_t*>(mapped);
}

Memory::Memory(Memory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Memory::~Memory() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
}

int64_t bytes_of(int64_t a, int64_t b, int64_t c, int64_t d) {
  int64_t product = a;
  for (int64_t factor : {b, c, d}) {
    if (__builtin_mul_overflow(product, factor, &product)) throw std::bad_alloc();
  }
  return product;
}

void Layout::grow(int64_t count, int64_t size) {
  const int64_t bytes = bytes_of(count, size);
  if (bytes > INT64_MAX - kAlignment - bytes_) throw std::bad_alloc();
  bytes_ = round_up(bytes_ + bytes, kAlignment);
}

}  // namespace bitpress
