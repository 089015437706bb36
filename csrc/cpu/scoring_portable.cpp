#include "score_rows.h"
#include "simd_portable.h"

emp::RowScorers emp::row_scorers_portable(LogitDtype dtype) {
  return row_scorers<portable::Simd>(dtype);
}
