#include "floats.h"

#if EMP_X86
#include <xmmintrin.h>
#endif

// Not inlined, so that the compiler does not move arithmetic across them.

namespace emp {
namespace {

#if EMP_X86
// Flush to zero, denormals are zero, and both rounding mode bits.
constexpr uint64_t kMode = 0x8000 | 0x0040 | 0x6000;
uint64_t read() { return _mm_getcsr(); }
void write(uint64_t word) { _mm_setcsr(uint32_t(word)); }
#elif defined(__aarch64__)
constexpr uint64_t kMode = (1 << 24) | (1 << 19) | (3 << 22);  // FZ, FZ16, RMode
uint64_t read() {
  uint64_t word;
  asm volatile("mrs %0, fpcr" : "=r"(word));
  return word;
}
void write(uint64_t word) { asm volatile("msr fpcr, %0" : : "r"(word) : "memory"); }
#else
constexpr uint64_t kMode = 0;
uint64_t read() { return 0; }
void write(uint64_t) {}
#endif

}  // namespace

StandardFloats::StandardFloats() : before_(read()) {
  if ((before_ & kMode) != 0) write(before_ & ~kMode);
}
StandardFloats::~StandardFloats() {
  if ((before_ & kMode) != 0) write((read() & ~kMode) | (before_ & kMode));
}

}  // namespace emp
