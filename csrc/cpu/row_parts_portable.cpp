#include "part_rows.h"
#include "simd_portable.h"

emp::AddPartRows emp::add_part_rows_portable(LogitDtype dtype) {
  return add_part_rows<portable::Simd>(dtype);
}
