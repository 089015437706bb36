#include "targets.h"

#include <cstdlib>
#include <cstring>
#if EMP_X86
#include <cpuid.h>
#endif

namespace emp {
namespace {

#if EMP_X86
// Not known to __builtin_cpu_supports of older clang versions.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}
#endif

Target choose() {
  if (const char* name = std::getenv("EMP_SIMD"))
    for (const Target wanted : kTargets)
      if (std::strcmp(name, target_name(wanted)) == 0 && target_available(wanted)) return wanted;
  for (const Target best : kTargets)
    if (target_available(best)) return best;
  return Target::kPortable;
}

}  // namespace

Target target() {
  static const Target chosen = choose();
  return chosen;
}

const char* target_name(Target target) {
  switch (target) {
    case Target::kAvx512:
      return "avx512";
    case Target::kAvx2:
      return "avx2";
    case Target::kPortable:
      break;
  }
#if defined(__aarch64__)
  return "neon";
#else
  return "portable";
#endif
}

bool target_available(Target target) {
#if EMP_X86
  switch (target) {
    case Target::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && target_available(Target::kAvx2);
    case Target::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() &&
             __builtin_cpu_supports("bmi2");
    case Target::kPortable:
      return true;
  }
#endif
  return target == Target::kPortable;
}

}  // namespace emp
