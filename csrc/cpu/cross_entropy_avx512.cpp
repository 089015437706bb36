#include "gradient_rows.h"
#include "simd_avx512.h"

emp::GradientRows emp::gradient_rows_avx512(LogitDtype dtype) {
  return gradient_rows<avx512::Simd>(dtype);
}
