#include "select_kernels.h"

emp::SelectKernels emp::select_kernels_portable() { return plain::Kernels<0>::all(); }
