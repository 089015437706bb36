// The gradient of the cross-entropy.
#pragma once

#include "scoring.h"

namespace emp {

// What the gradient is made of: the forward pass's loss and lse and each row's scale, (rows,).
struct RowGradients {
  const float *loss, *lse, *scale;
};

// Writes (softmax(z) - onehot(label)) * scale of each row, (rows, classes), contiguous, in the
// logits' type: each logit is read once and each element written once. A row of scale 0 is not
// read and becomes 0; the labels of the others must be in range. `out` must not overlap an input.
// The result does not depend on `threads`.
void cross_entropy_backward(const Logits& logits, const Labels& labels,
                            const RowGradients& gradients, void* out, int threads);

}  // namespace emp
