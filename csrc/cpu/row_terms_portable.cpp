#include "simd_portable.h"
#include "term_rows.h"

emp::TermRowKernels emp::term_row_kernels_portable() { return term_row_kernels<portable::Simd>(); }
