// Which instruction set the kernels use, chosen once at run time.
#pragma once

namespace emp {

enum class Target { kPortable, kAvx2, kAvx512 };

constexpr Target kTargets[] = {Target::kAvx512, Target::kAvx2, Target::kPortable};  // best first

// The best instruction set that the processor has; EMP_SIMD=portable|avx2|avx512 asks for a
// lower one (an unknown or unavailable name is ignored here: the Python layer reports it).
Target target();
// kPortable's is what the compiler makes of its vectors: on AArch64 "neon", else "portable".
const char* target_name(Target target);
bool target_available(Target target);

}  // namespace emp
