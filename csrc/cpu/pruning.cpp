#include "pruning.h"

#include <algorithm>
#include <cmath>

#include "floats.h"
#include "gathering.h"
#include "selection.h"

namespace emp {

int64_t KeepRule::of(int64_t n) const {
  if (n == 0) return 0;
  const StandardFloats mode;  // a half goes to the even neighbour, whatever the caller's rounding
  if (share < 0) return std::min(n, count);
  return std::max<int64_t>(1, int64_t(std::nearbyint(share * double(n))));
}

Pruned score_and_select(const Logits& logits, const Labels& labels, float beta, KeepRule keep,
                        const State* state, const int64_t* ids, const PruningOutputs& out,
                        int threads) {
  const StandardFloats mode;
  const RowCounts counts = score(logits, labels, beta, out.scores, threads);
  if (counts.bad_label >= 0) return {0, {counts.bad_label, -1}};
  if (state != nullptr && ids != nullptr) {
    const int64_t bad_id = first_bad_index(ids, logits.rows, state->size);
    if (bad_id >= 0) return {0, {-1, bad_id}};
  }
  // Invalid and ignored scores rank last, so none of them is selected.
  const int64_t k =
      std::min(keep.of(labels.has_ignored ? counts.valid : logits.rows), counts.valid);
  *out.threshold = select(out.scores.score, logits.rows, k, out.indices, threads);
  *out.num_invalid = int32_t(counts.invalid);
  if (state == nullptr) return {k, {}};
  const int64_t bad_id = update_state(
      *state, {out.scores.score, out.scores.loss, out.scores.entropy, ids, logits.rows}, threads);
  count_selections(*state, out.indices, k, ids);
  return {k, {-1, bad_id}};
}

}  // namespace emp
