#include "score_rows.h"
#include "simd_avx512.h"

emp::RowScorers emp::row_scorers_avx512(LogitDtype dtype) {
  return row_scorers<avx512::Simd>(dtype);
}
