#include "score_rows.h"
#include "simd_avx2.h"

emp::RowScorers emp::row_scorers_avx2(LogitDtype dtype) { return row_scorers<avx2::Simd>(dtype); }
