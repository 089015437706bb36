// Memory that another thread may write while a kernel works on it: a state that one thread selects
// from and another updates, labels in a buffer that is being refilled. What is read is then an old
// or a new number; each is read once, and what was checked is what is used.
#pragma once

namespace emp {

// One read, which the compiler neither repeats nor leaves out.
template <class T>
[[gnu::always_inline]] inline T read_once(const T* p) {
  return *static_cast<const volatile T*>(p);
}

// Of functions whose races are meant, for ThreadSanitizer.
#define EMP_MAY_RACE __attribute__((no_sanitize("thread")))

}  // namespace emp
