// The main call: score, remember, select.
#pragma once

#include <cstdint>

#include "scoring.h"
#include "state.h"

namespace emp {

// How many rows to keep: `share` of the rows that count, or where that is negative `count`, never
// more than are valid.
struct KeepRule {
  double share;
  int64_t count;
};

struct PruningOutputs {
  ScoreOutputs scores;
  int64_t* indices;  // room for min(rows, the rule's largest count)
  float* threshold;  // the last kept score, +inf when nothing is kept
  int32_t* num_invalid;
};

// Scores all rows, writes the valid ones into `state` (nothing where that is null) at `ids` (row i
// is sample i where that is null) and the positions of the highest scores to out.indices,
// ascending. Returns their number. Labels and ids must be in range.
int64_t score_and_select(const Logits& logits, const Labels& labels, float beta, KeepRule keep,
                         const State* state, const int64_t* ids, const PruningOutputs& out,
                         int threads);

}  // namespace emp
