#include "simd_portable.h"
#include "sum_rows.h"

template struct emp::RowSummer<emp::portable::Simd, float, false>;
template struct emp::RowSummer<emp::portable::Simd, float, true>;
template struct emp::RowSummer<emp::portable::Simd, emp::Float16, false>;
template struct emp::RowSummer<emp::portable::Simd, emp::Float16, true>;
template struct emp::RowSummer<emp::portable::Simd, emp::BFloat16, false>;
template struct emp::RowSummer<emp::portable::Simd, emp::BFloat16, true>;
