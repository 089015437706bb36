// Rows [begin, end) of row_terms and its gradient, for one SIMD target: the body of
// row_terms_<target>.cpp.
//
// A chunk of a row is converted to float32 and reduced, or turned into a gradient, in the L1 cache.
// The options are tested once per chunk, and each combination of adjustment and weights has its own
// loop; only the conversions are compiled per type.
#pragma once

#include <cmath>
#include <cstring>

#include "row_terms.h"
#include "term_gradients.h"
#include "term_sums.h"

namespace emp {

template <class S>
struct TermRows {
  using Sums = TermSums<S>;
  using Gradient = TermGradientRow<S>;
  using Columns = emp::Columns<S>;
  using Weights = WeightsOfRow<S>;
  using Constants = typename Sums::Constants;
  using Row = typename Sums::Row;

  // Returns the first row with an invalid label, or -1.
  static int64_t terms(const Logits& logits, const Labels& labels, const Adjustment& adjustment,
                       const TargetWeights& targets, const TermOutputs& out, int64_t begin,
                       int64_t end) {
    const Constants k;
    typename Sums::Memory memory;
    int64_t bad = -1;
    for_each_label(labels, begin, end, [&](int64_t i, int64_t y) {
      if (labels.ignores(y)) {
        for (float* field : {out.loss, out.entropy, out.lse, out.target, out.total, out.maximum,
                             out.above, out.mean})
          if (field != nullptr) field[i] = 0.0f;
        return;
      }
      if (!targets.has_probabilities() && uint64_t(y) >= uint64_t(logits.classes)) {
        if (bad < 0) bad = i;
        return;
      }
      terms_of_row(k, logits, Row(adjustment, i), i, y, targets, out, memory);
    });
    return bad;
  }

  static void gradient(const Logits& logits, const Labels& labels, const Adjustment& adjustment,
                       const TargetWeights& targets, const TermGradients& gradients, void* out,
                       bool stream, int64_t begin, int64_t end) {
    const Constants k;
    typename Gradient::Memory memory;
    const int64_t bytes = logits.classes * Columns::size_of(logits.dtype);
    for_each_label(labels, begin, end, [&](int64_t i, int64_t y) {
      char* const to = static_cast<char*>(out) + i * bytes;
      const typename Gradient::Coefficients c(gradients, i);
      if (c.nothing()) {
        std::memset(to, 0, size_t(bytes));
        return;
      }
      const Row row(adjustment, i);
      Gradient::write_row(k, logits, row, i, y, targets, gradients, c, to, stream, memory);
    });
    if (stream) S::fence();
  }

  // Both, for probabilities: a row's gradient while the row is in the L1 cache.
  static void terms_and_gradient(const Logits& logits, const Adjustment& adjustment,
                                 const TargetWeights& targets, float scale, const TermOutputs& out,
                                 void* to, bool stream, int64_t begin, int64_t end) {
    const Constants k;
    typename Gradient::Memory memory;
    const int64_t bytes = logits.classes * Columns::size_of(logits.dtype);
    TermGradients found{};
    found.loss = out.loss, found.lse = out.lse, found.maximum = out.maximum;
    found.above = out.above, found.mean = out.mean;
    for (int64_t i = begin; i < end; ++i) {
      const Row row(adjustment, i);
      terms_of_row(k, logits, row, i, 0, targets, out, memory.sums);
      const typename Gradient::Coefficients c(scale * out.total[i], scale);
      Gradient::write_row(k, logits, row, i, 0, targets, found, c,
                          static_cast<char*>(to) + i * bytes, stream, memory);
    }
    if (stream) S::fence();
  }

 private:
  static void terms_of_row(const Constants& k, const Logits& logits, const Row& row, int64_t i,
                           int64_t y, const TargetWeights& targets, const TermOutputs& out,
                           typename Sums::Memory& memory) {
    const void* z = Columns::row_of(logits, i);
    const auto found =
        Sums::sum_row(k, row, z, logits.dtype, logits.classes, Weights(targets, i), memory);
    const double log_sum = std::log1p(found.u), mean = row.scale * found.t / (1 + found.u);
    const double m = row.adjusted(double(found.m));
    const auto loss_of = [&](const Dot<double>& dot) {  // sum w (log_sum - scale d)
      return float(dot.total * log_sum - row.scale * dot.product);
    };
    if (targets.has_probabilities()) {
      out.loss[i] = loss_of(found.dots.label);
    } else {
      const double y_below = row.distance(found.m, Columns::element(z, logits.dtype, y));
      out.loss[i] = float(row.scale * y_below + log_sum);
    }
    out.entropy[i] = float((log_sum - mean) + (m - m));  // NaN if m is not finite
    out.lse[i] = float(m + log_sum);
    if (targets.present) {
      out.target[i] = loss_of(found.dots.target);
      out.total[i] = float(found.dots.target.total);
    }
    out.maximum[i] = found.m;
    out.above[i] = float(log_sum);
    out.mean[i] = float(mean);
  }
};

// What row_terms.cpp calls, one set per target.
struct TermRowKernels {
  int64_t (*terms)(const Logits&, const Labels&, const Adjustment&, const TargetWeights&,
                   const TermOutputs&, int64_t, int64_t);
  void (*gradient)(const Logits&, const Labels&, const Adjustment&, const TargetWeights&,
                   const TermGradients&, void*, bool, int64_t, int64_t);
  void (*both)(const Logits&, const Adjustment&, const TargetWeights&, float, const TermOutputs&,
               void*, bool, int64_t, int64_t);
};

template <class S>
TermRowKernels term_row_kernels() {
  return {TermRows<S>::terms, TermRows<S>::gradient, TermRows<S>::terms_and_gradient};
}

TermRowKernels term_row_kernels_avx512();
TermRowKernels term_row_kernels_avx2();
TermRowKernels term_row_kernels_portable();

}  // namespace emp
