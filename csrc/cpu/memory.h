// Memory for results and temporaries; a failed allocation reports its size.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <new>

namespace emp {

class OutOfMemory : public std::bad_alloc {
 public:
  // A negative `bytes` means more than fit in 63 bits.
  explicit OutOfMemory(int64_t bytes) {
    if (bytes < 0)
      std::snprintf(text_, sizeof text_, "2^63 bytes or more cannot be allocated");
    else
      std::snprintf(text_, sizeof text_, "%lld bytes cannot be allocated",
                    static_cast<long long>(bytes));
  }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[64];
};

// a * b for a, b >= 0; throws above 2^63 - 1.
inline int64_t checked_product(int64_t a, int64_t b) {
  int64_t product;
  if (__builtin_mul_overflow(a, b, &product)) throw OutOfMemory(-1);
  return product;
}

// `count` elements, uninitialised.
template <class T>
std::unique_ptr<T[]> allocate(int64_t count) {
  const int64_t bytes = checked_product(count, sizeof(T));
  std::unique_ptr<T[]> block(new (std::nothrow) T[size_t(count)]);
  if (!block) throw OutOfMemory(bytes);
  return block;
}

}  // namespace emp
