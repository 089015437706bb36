#include "select_kernels.h"

emp::SelectKernels emp::select_kernels_avx2() { return plain::Kernels<2>::all(); }
