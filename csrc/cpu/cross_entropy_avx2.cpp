#include "gradient_rows.h"
#include "simd_avx2.h"

emp::GradientRows emp::gradient_rows_avx2(LogitDtype dtype) {
  return gradient_rows<avx2::Simd>(dtype);
}
