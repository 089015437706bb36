// Rows of logits given in pieces of columns: tiles of a product that is never materialised, shards
// of a vocabulary.
#pragma once

#include <cstdint>

#include "scoring.h"

namespace emp {

// Sums over the pieces so far, (rows,) each, in double: m = max z; u = sum exp(z - m) and
// t = sum exp(z - m) (z - m) over all elements but one maximal one; z_y the label's logit.
// Before the first piece: -inf, 0, 0 and NaN. A NaN among the logits makes u NaN.
struct RowParts {
  double *m, *u, *t, *z_y;
};

// Adds a piece, columns [first_column, first_column + piece.classes) of the rows. Labels outside it
// are skipped; rows whose label is ignored are not read. The result does not depend on `threads`.
void add_row_parts(const Logits& piece, const Labels& labels, int64_t first_column,
                   const RowParts& parts, int threads);

// The results of `score` for the whole rows, none of which is ignored.
RowCounts scores_of_parts(const RowParts& parts, int64_t rows, float beta, const ScoreOutputs& out);

}  // namespace emp
