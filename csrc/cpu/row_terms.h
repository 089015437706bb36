// The terms of losses with options: a few numbers per row of adjusted logits, and their gradient.
// With raw logits z, a_j = softcap * tanh(z_j / softcap) / temperature, p = softmax(a), d_j = a_j -
// max a, and weights q_j = weight_j * (share * probabilities_j + uniform).
#pragma once

#include <cstdint>

#include "scoring.h"

namespace emp {

// `temperatures` (rows,), or null for `temperature` everywhere. softcap 0: none.
struct Adjustment {
  double temperature;
  const float* temperatures;
  double softcap;

  double temperature_of(int64_t row) const {
    return temperatures == nullptr ? temperature : double(temperatures[row]);
  }
};

// weight (classes,), null for 1; probabilities (rows, classes), data null for 0. No weights at all
// if `present` is false.
struct TargetWeights {
  bool present;
  const float* weight;
  Logits probabilities;
  float share, uniform;

  bool has_probabilities() const { return present && probabilities.data != nullptr; }
};

// Each (rows,): loss = -log p_y, for probabilities -sum probabilities_j log p_j; entropy; lse;
// target = -sum q_j log p_j and total = sum q_j, null without weights; maximum = max z, raw;
// above = lse - max a; mean = sum p_j d_j. A weight of 0 adds 0, even if p_j is 0. All are 0 for
// ignored rows; rows with an invalid label are not written.
struct TermOutputs {
  float *loss, *entropy, *lse, *target, *total, *maximum, *above, *mean;
};

// Returns the first row with an invalid label, or -1. With probabilities, labels only mark ignored
// rows. The result does not depend on `threads`.
int64_t row_terms(const Logits& logits, const Labels& labels, const Adjustment& adjustment,
                  const TargetWeights& targets, const TermOutputs& out, int threads);

// The terms from row_terms (maximum, above and mean null if only loss and lse are known), and per
// row the coefficients A, B, S and `rest`: A - L - S q_y, the coefficient left at the label, or,
// for probabilities, A - S * total. B and S may be null for 0.
struct TermGradients {
  const float *loss, *lse, *maximum, *above, *mean;
  const float *probability, *entropy, *target, *rest;
};

// Writes (A p_j + B p_j (d_j - mean) - S q_j - L [j = label]) * d a_j / d z_j of each row, (rows,
// classes), contiguous, in the logits' type. A row whose coefficients are all 0 is not read and
// becomes 0. A label that is not a column is ignored. `out` must not overlap an input. The result
// does not depend on `threads`.
void row_terms_backward(const Logits& logits, const Labels& labels, const Adjustment& adjustment,
                        const TargetWeights& targets, const TermGradients& gradients, void* out,
                        int threads);

// Both in one read, for probabilities and no ignored rows: the terms, and into `out` the gradient
// of scale * sum of all rows' targets. The same bits as one call after the other.
void row_terms_with_gradient(const Logits& logits, const Adjustment& adjustment,
                             const TargetWeights& targets, float scale, const TermOutputs& terms,
                             void* out, int threads);

}  // namespace emp
