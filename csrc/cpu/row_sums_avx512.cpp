#include "simd_avx512.h"
#include "sum_rows.h"

template struct emp::RowSummer<emp::avx512::Simd, float, false>;
template struct emp::RowSummer<emp::avx512::Simd, float, true>;
template struct emp::RowSummer<emp::avx512::Simd, emp::Float16, false>;
template struct emp::RowSummer<emp::avx512::Simd, emp::Float16, true>;
template struct emp::RowSummer<emp::avx512::Simd, emp::BFloat16, false>;
template struct emp::RowSummer<emp::avx512::Simd, emp::BFloat16, true>;
