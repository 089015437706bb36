#include "simd_avx2.h"
#include "term_rows.h"

emp::TermRowKernels emp::term_row_kernels_avx2() { return term_row_kernels<avx2::Simd>(); }
