#include "part_rows.h"
#include "simd_avx2.h"

emp::AddPartRows emp::add_part_rows_avx2(LogitDtype dtype) {
  return add_part_rows<avx2::Simd>(dtype);
}
