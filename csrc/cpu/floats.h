// The floating-point mode while kernels run.
#pragma once

#include <cstdint>

namespace emp {

// During its lifetime this thread rounds to nearest and keeps subnormal numbers, whatever mode its
// caller has set (torch.set_flush_denormal, fesetround): the order of selection, powers of two by
// magic numbers and compensated sums rely on it. The mode is per thread, so every computing thread
// needs its own.
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
