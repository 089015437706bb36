// The main call: score, update the state, select.
#pragma once

#include <cstdint>

#include "scoring.h"
#include "state.h"

namespace emp {

// How many rows to keep: a share in (0, 1] or, if that is negative, a count of at least 1.
struct KeepRule {
  double share;
  int64_t count;

  // For n rows: max(1, round(share * n)), halves to even, or min(count, n).
  int64_t of(int64_t n) const;
};

struct PruningOutputs {
  ScoreOutputs scores;
  int64_t* indices;  // capacity: what the rule keeps of all rows
  float* threshold;  // the lowest kept score, +inf if nothing is kept
  int32_t* num_invalid;
};

struct Pruned {
  int64_t selected;
  BadValues bad;
};

// Scores all rows, writes the valid ones into `state` (if not null) at `ids` (row i is sample i if
// null) and the positions of the highest scores to out.indices, ascending. Their number is what the
// rule keeps of all rows or, if labels may be ignored, of the valid ones, but at most the number of
// valid ones. If a label or an id is out of range, the state is not written; if another thread
// concurrently writes an id that is out of range, only that row is skipped.
Pruned score_and_select(const Logits& logits, const Labels& labels, float beta, KeepRule keep,
                        const State* state, const int64_t* ids, const PruningOutputs& out,
                        int threads);

}  // namespace emp
