#include "part_rows.h"
#include "simd_avx512.h"

emp::AddPartRows emp::add_part_rows_avx512(LogitDtype dtype) {
  return add_part_rows<avx512::Simd>(dtype);
}
