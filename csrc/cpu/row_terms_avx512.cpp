#include "simd_avx512.h"
#include "term_rows.h"

emp::TermRowKernels emp::term_row_kernels_avx512() { return term_row_kernels<avx512::Simd>(); }
