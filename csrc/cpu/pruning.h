// The main call: score, remember, select.
#pragma once

#include <cstdint>

#include "scoring.h"
#include "state.h"

namespace emp {

// How many rows to keep: a share in (0, 1], or where that is negative a count of at least 1.
struct KeepRule {
  double share;
  int64_t count;

  // Of n rows: max(1, share * n rounded), halves to the even neighbour, or the count, at most n.
  int64_t of(int64_t n) const;
};

struct PruningOutputs {
  ScoreOutputs scores;
  int64_t* indices;  // room for what the rule keeps of all rows
  float* threshold;  // the last kept score, +inf when nothing is kept
  int32_t* num_invalid;
};

struct Pruned {
  int64_t selected;
  BadValues bad;
};

// Scores all rows, writes the valid ones into `state` (nothing where that is null) at `ids` (row i
// is sample i where that is null) and the positions of the highest scores to out.indices,
// ascending. Their number is what the rule keeps of all rows or, where labels may be ignored, of
// the valid ones, but never more than are valid. Where a label or an id is out of range the state
// is not written; where another thread has put an id out of range meanwhile, the other rows are.
Pruned score_and_select(const Logits& logits, const Labels& labels, float beta, KeepRule keep,
                        const State* state, const int64_t* ids, const PruningOutputs& out,
                        int threads);

}  // namespace emp
