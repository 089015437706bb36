// How the processor rounds floats while kernels run.
#pragma once

#include <cstdint>

namespace emp {

// While one lives, this thread rounds to nearest and takes subnormal numbers as they are, whatever
// its caller has set (torch.set_flush_denormal, fesetround): the order of selection, powers of two
// by magic numbers and compensated sums all rely on it. The mode belongs to the thread, so every
// thread that calculates needs its own.
class StandardFloats {
 public:
  StandardFloats();
  ~StandardFloats();
  StandardFloats(const StandardFloats&) = delete;
  StandardFloats& operator=(const StandardFloats&) = delete;

 private:
  uint64_t before_;
};

}  // namespace emp
