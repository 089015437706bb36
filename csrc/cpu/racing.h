// Memory that another thread may write while a kernel works on it: a state that one thread selects
// from and another updates, labels in a buffer that is being refilled. What is read is then an old
// or a new number; each is read once, and what was checked is what is used.
#pragma once

#include <cstdint>

namespace emp {

// One read, which the compiler neither repeats nor leaves out.
template <class T>
[[gnu::always_inline]] inline T read_once(const T* p) {
  return *static_cast<const volatile T*>(p);
}

// Of functions whose races are meant, for ThreadSanitizer.
#define EMP_MAY_RACE __attribute__((no_sanitize("thread")))

// One read of each of count numbers: what comes later uses the copies. In blocks, which become a
// few wide loads and which no sanitizer sees as a call.
template <class T>
EMP_MAY_RACE inline void read_once(T* copies, const T* p, int64_t count) {
  constexpr int64_t kBlock = 64 / sizeof(T);
  int64_t k = 0;
  for (; k + kBlock <= count; k += kBlock) __builtin_memcpy(copies + k, p + k, 64);
  for (; k < count; ++k) copies[k] = p[k];
  asm volatile("" ::: "memory");
}

}  // namespace emp
