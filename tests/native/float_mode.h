// A floating-point mode that a caller may have set, during the object's lifetime: flushing
// (torch.set_flush_denormal) and a rounding mode (fesetround).
#pragma once

#include <cfenv>
#include <cstdint>
#if EMP_X86
#include <xmmintrin.h>
#endif

class FloatMode {
 public:
  FloatMode(bool flushed, int rounding) {
    std::fesetround(rounding);
    if (flushed) set(get() | kFlush);
  }
  ~FloatMode() {
    set(get() & ~kFlush);
    std::fesetround(FE_TONEAREST);
  }
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

  // This thread's mode bits; 0 keeps subnormal numbers and rounds to nearest.
  static uint64_t bits() { return get() & (kFlush | kRounding); }

 private:
#if EMP_X86
  static constexpr uint64_t kFlush = 0x8040, kRounding = 0x6000;
  static uint64_t get() { return _mm_getcsr(); }
  static void set(uint64_t word) { _mm_setcsr(uint32_t(word)); }
#elif defined(__aarch64__)
  static constexpr uint64_t kFlush = 1 << 24, kRounding = 3 << 22;
  static uint64_t get() {
    uint64_t word;
    asm volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void set(uint64_t word) { asm volatile("msr fpcr, %0" : : "r"(word) : "memory"); }
#else
  static constexpr uint64_t kFlush = 0, kRounding = 0;
  static uint64_t get() { return 0; }
  static void set(uint64_t) {}
#endif
};
