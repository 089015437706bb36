// The cross-entropy and its gradient.
#pragma once

#include "scoring.h"
#include "state.h"

namespace emp {

enum class Reduction { kMean, kSum, kNone };

// `result` is (), or (rows,) without reduction; loss and lse are (rows,), for the gradient.
struct LossOutputs {
  float *result, *loss, *lse;
};

struct CountedRows {
  int64_t count;
  BadValues bad;
};

// The loss of the rows that are not ignored, and their number; the mean of none is NaN. Scores of
// all rows are written into `state`, unless it is null, at `ids`, or row i at i if they are null.
// Invalid labels and ids are handled as in score_and_select. A row with a logit of +inf, or with
// none above -inf, has loss NaN in the result, as in torch. The result does not depend on
// `threads`.
CountedRows cross_entropy(const Logits& logits, const Labels& labels, Reduction reduction,
                          float beta, const State* state, const int64_t* ids,
                          const LossOutputs& out, int threads);

// Inputs of the gradient: the forward pass's loss and lse, (rows,), and row i's scale, scale[i *
// scale_stride] / divisor. For sharded rows, `maximum`, (rows,), is that of the whole row and lse
// is relative to it; otherwise null.
struct RowGradients {
  const float *loss, *lse, *scale;
  int64_t scale_stride;
  float divisor;
  const float* maximum;
};

// Writes (softmax(z) - onehot(label)) * scale of each row, (rows, classes), contiguous, in the
// logits' type: each logit is read once and each element written once. A row of scale 0, or that
// is ignored, is not read and becomes 0. A label that is not a column is on another shard. `out`
// must not overlap an input. The result does not depend on `threads`.
void cross_entropy_backward(const Logits& logits, const Labels& labels,
                            const RowGradients& gradients, void* out, int threads);

}  // namespace emp
