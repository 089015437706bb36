#include "gradient_rows.h"
#include "simd_portable.h"

emp::GradientRows emp::gradient_rows_portable(LogitDtype dtype) {
  return gradient_rows<portable::Simd>(dtype);
}
