#include "pruning.h"

#include <algorithm>
#include <cmath>

#include "selection.h"

namespace emp {

int64_t score_and_select(const Logits& logits, const Labels& labels, float beta, KeepRule keep,
                         const State* state, const int64_t* ids, const PruningOutputs& out,
                         int threads) {
  const RowCounts counts = score(logits, labels, beta, out.scores, threads);
  int64_t k = keep.count;
  if (keep.share >= 0)  // nearbyint rounds halves to even, as Python's round does
    k = std::max<int64_t>(1, int64_t(std::nearbyint(keep.share * double(counts.valid))));
  k = std::min(k, counts.valid);  // invalid and ignored scores rank last: none of them is reached
  *out.threshold = select(out.scores.score, logits.rows, k, out.indices, threads);
  *out.num_invalid = int32_t(counts.invalid);
  if (state != nullptr) {
    update_state(*state, {out.scores.score, out.scores.loss, out.scores.entropy, ids, logits.rows},
                 threads);
    count_selections(*state, out.indices, k, ids);
  }
  return k;
}

}  // namespace emp
