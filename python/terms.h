// Terms of losses with options, and their gradient.
#pragma once

#include <pybind11/stl.h>

#include <array>

#include "arguments.h"
#include "cpu/row_terms.h"

namespace bindings {

using Optional = std::optional<Dense>;

inline const float* floats_of(const Optional& tensor) {
  return tensor ? tensor->data<const float>() : nullptr;
}

// temperature: a number, or (rows,) float32 in `temperatures`; softcap 0: none.
inline emp::Adjustment adjustment_of(double temperature, const Optional& temperatures,
                                     double softcap) {
  return {temperature, floats_of(temperatures), softcap};
}

// share and uniform, or None for no weights. `probabilities` are (rows, classes) with unit inner
// stride.
using Shares = std::optional<std::array<float, 2>>;

inline emp::TargetWeights targets_of(const Shares& shares, const Optional& weight,
                                     const std::optional<Tensor>& probabilities) {
  if (!shares) return {};
  emp::TargetWeights targets{true, floats_of(weight), {}, (*shares)[0], (*shares)[1]};
  if (probabilities) targets.probabilities = logits_of(*probabilities);
  return targets;
}

// (-1, loss, entropy, lse, maximum, above, mean, target, total), (rows,) each, the last two None
// without weights; or (the first row with an invalid label,). With a `gradient`, of probabilities,
// also writes to it that of scale * sum of the targets.
inline py::tuple row_terms(const Tensor& z, const Dense& y, Ignored ignored, double temperature,
                           const Optional& temperatures, double softcap, const Shares& shares,
                           const Optional& weight, const std::optional<Tensor>& probabilities,
                           float scale, const std::optional<Written>& gradient, int threads) {
  const emp::Logits logits = logits_of(z);
  const int64_t rows = logits.rows;
  Result<float> loss(rows), entropy(rows), lse(rows), maximum(rows), above(rows), mean(rows);
  Result<float> target(shares ? rows : 0), total(shares ? rows : 0);
  int64_t bad = -1;
  {
    py::gil_scoped_release released;
    float* const none = nullptr;
    const emp::Adjustment adjustment = adjustment_of(temperature, temperatures, softcap);
    const emp::TargetWeights targets = targets_of(shares, weight, probabilities);
    const emp::TermOutputs out{
        loss,    entropy, lse, shares ? (float*)target : none, shares ? (float*)total : none,
        maximum, above,   mean};
    if (gradient)
      emp::row_terms_with_gradient(logits, adjustment, targets, scale, out, gradient->data<void>(),
                                   threads);
    else
      bad = emp::row_terms(logits, labels_of(y, ignored), adjustment, targets, out, threads);
  }
  if (bad >= 0) return py::make_tuple(bad);
  const auto given = [&](Result<float>& result) {
    return shares ? result.tensor() : py::object(py::none());
  };
  return py::make_tuple(bad, loss.tensor(), entropy.tensor(), lse.tensor(), maximum.tensor(),
                        above.tensor(), mean.tensor(), given(target), given(total));
}

// Writes the gradient to out. `terms` are loss, lse, maximum, above and mean, the last three None
// if unknown; `coefficients` A, B, S and the rest.
inline void row_terms_backward(const Tensor& z, const Dense& y, double temperature,
                               const Optional& temperatures, double softcap, const Shares& shares,
                               const Optional& weight, const std::optional<Tensor>& probabilities,
                               const std::array<Optional, 5>& terms,
                               const std::array<Optional, 4>& coefficients, const Written& out,
                               int threads) {
  py::gil_scoped_release released;
  const auto term = [&](int i) { return floats_of(terms[i]); };
  const auto coefficient = [&](int i) { return floats_of(coefficients[i]); };
  emp::row_terms_backward(logits_of(z), labels_of(y, {}),
                          adjustment_of(temperature, temperatures, softcap),
                          targets_of(shares, weight, probabilities),
                          {term(0), term(1), term(2), term(3), term(4), coefficient(0),
                           coefficient(1), coefficient(2), coefficient(3)},
                          out.data<void>(), threads);
}

}  // namespace bindings
