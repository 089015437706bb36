// Which instruction set the kernels use, chosen once at run time.
#pragma once

namespace emp {

enum class Target { kPortable, kAvx2, kAvx512 };

// The best instruction set that the processor has; EMP_SIMD=portable|avx2|avx512 asks for a
// lower one (an unknown or unavailable name is ignored here: the Python layer reports it).
Target target();
const char* target_name(Target target);
bool target_available(Target target);

}  // namespace emp
