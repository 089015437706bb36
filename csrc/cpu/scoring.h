// Scores and statistics of rows of logits.
#pragma once

#include <cstdint>

#include "dtypes.h"
#include "labels.h"

namespace emp {

// Logits (rows, classes) of unit inner stride. Row i starts at element
// (i / group_rows) * group_stride + (i % group_rows) * row_stride.
struct Logits {
  const void* data;
  LogitDtype dtype;
  int64_t rows, classes, group_rows, group_stride, row_stride;

  template <class T>
  [[gnu::always_inline]] const T* row(int64_t i) const {
    const T* base = static_cast<const T*>(data);
    if (i < group_rows) return base + i * row_stride;
    return base + i / group_rows * group_stride + i % group_rows * row_stride;
  }
  int64_t bytes() const { return rows * classes * (dtype == LogitDtype::kFloat32 ? 4 : 2); }
};

// Each output is (rows,), contiguous, and fully written.
struct ScoreOutputs {
  float *score, *loss, *entropy, *lse;
};
struct StatisticOutputs {
  float *loss, *entropy, *lse, *confidence, *el2n, *margin;
  bool* correct;
  int64_t* prediction;
};

// Partial sums of sharded rows (row_sums.h): m = max z and, over all elements but one maximal one,
// u = sum exp(z - m) and t = sum exp(z - m) (z - m); z_y, or NaN if the label is not a local
// column. All are 0 for an ignored row.
struct SumOutputs {
  float *m, *u, *t, *z_y;
};

// A row is invalid if its loss or entropy is not finite; its score is NaN. An ignored row has score
// -inf and 0 in the other outputs. A row with an invalid label, neither ignored nor in [0,
// classes), is not written.
struct RowCounts {
  int64_t valid = 0, invalid = 0;
  int64_t bad_label = -1;  // the first such row, or -1
};

// Invalid values in the arguments of a call that writes into a state: the first row with an invalid
// label or, if there is none, a position of an id out of range; -1 if there is none.
struct BadValues {
  int64_t label = -1, id = -1;

  explicit operator bool() const { return label >= 0 || id >= 0; }
};

// The result does not depend on `threads`. sample_statistics returns the first row with an invalid
// label, or -1.
RowCounts score(const Logits& logits, const Labels& labels, float beta, const ScoreOutputs& out,
                int threads);
int64_t sample_statistics(const Logits& logits, const Labels& labels, const StatisticOutputs& out,
                          int threads);
// Labels may have any value.
void row_sums(const Logits& logits, const Labels& labels, const SumOutputs& out, int threads);

}  // namespace emp
