// Reads of memory that another thread may write concurrently: a state that one thread selects from
// and another updates, labels in a buffer that is being refilled. Each value is read once, as an
// old or a new number, and the value that was checked is the one used.
#pragma once

#include <cstdint>

namespace emp {

// One read, which the compiler neither repeats nor omits.
template <class T>
[[gnu::always_inline]] inline T read_once(const T* p) {
  return *static_cast<const volatile T*>(p);
}

// Marks functions with intended races for ThreadSanitizer.
#define EMP_MAY_RACE __attribute__((no_sanitize("thread")))

// Copies count numbers with one read each, in blocks that compile to a few wide loads and that
// sanitizers do not see as a call.
template <class T>
EMP_MAY_RACE inline void read_once(T* copies, const T* p, int64_t count) {
  constexpr int64_t kBlock = 64 / sizeof(T);
  int64_t k = 0;
  for (; k + kBlock <= count; k += kBlock) __builtin_memcpy(copies + k, p + k, 64);
  for (; k < count; ++k) copies[k] = p[k];
  asm volatile("" ::: "memory");
}

}  // namespace emp
