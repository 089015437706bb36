#include "simd_avx2.h"
#include "sum_rows.h"

template struct emp::RowSummer<emp::avx2::Simd, float, false>;
template struct emp::RowSummer<emp::avx2::Simd, float, true>;
template struct emp::RowSummer<emp::avx2::Simd, emp::Float16, false>;
template struct emp::RowSummer<emp::avx2::Simd, emp::Float16, true>;
template struct emp::RowSummer<emp::avx2::Simd, emp::BFloat16, false>;
template struct emp::RowSummer<emp::avx2::Simd, emp::BFloat16, true>;
