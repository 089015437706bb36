// The instruction set of the kernels, chosen once at run time.
#pragma once

namespace emp {

enum class Target { kPortable, kAvx2, kAvx512 };

constexpr Target kTargets[] = {Target::kAvx512, Target::kAvx2, Target::kPortable};  // best first

// The best instruction set of the processor; EMP_SIMD=portable|avx2|avx512 selects a lower one
// (unknown or unavailable names are ignored here; the Python layer reports them).
Target target();
// kPortable is whatever the compiler makes of its vectors: "neon" on AArch64, else "portable".
const char* target_name(Target target);
bool target_available(Target target);

}  // namespace emp
