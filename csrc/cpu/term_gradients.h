// The gradient of a row's loss with options, for one SIMD target.
#pragma once

#include <algorithm>
#include <cmath>

#include "term_sums.h"

namespace emp {

template <class S>
struct TermGradientRow : AdjustedLogits<S> {
  using Base = AdjustedLogits<S>;
  using Columns = emp::Columns<S>;
  using Weights = WeightsOfRow<S>;
  using Chunk = typename Weights::Chunk;
  using Base::kNaN, Base::kNormal, Base::kWidth;
  using typename Base::Constants, typename Base::F, typename Base::Row;
  static constexpr int64_t kChunk = Columns::kChunk;
  static constexpr float kSharpLse =
      32.0f;  // as in gradient_rows.h: beyond it, sums are recomputed

  struct Memory {
    typename TermSums<S>::Memory sums;
    typename Columns::Buffer out;
  };
  struct Coefficients {
    float probability, entropy, target, rest;

    Coefficients(const TermGradients& g, int64_t i)
        : probability(g.probability[i]),
          entropy(g.entropy == nullptr ? 0.0f : g.entropy[i]),
          target(g.target == nullptr ? 0.0f : g.target[i]),
          rest(g.rest[i]) {}
    // Of probabilities: A = S * total, so that A - S * total is 0.
    Coefficients(float probability_, float target_)
        : probability(probability_), entropy(0.0f), target(target_), rest(0.0f) {}
    bool nothing() const {
      return probability == 0.0f && entropy == 0.0f && target == 0.0f && rest == 0.0f;
    }
  };
  // p_j = exp(adjusted(z_j) - adjusted(from) - above).
  struct Normaliser {
    float from, above, mean;
  };

  static Normaliser normaliser(const Constants& k, const Row& row, const void* z,
                               const Logits& logits, const TermGradients& gradients, int64_t i,
                               Memory& memory) {
    Normaliser norm;
    if (gradients.maximum != nullptr) {
      norm = {gradients.maximum[i], gradients.above[i], gradients.mean[i]};
    } else if (std::fabs(gradients.lse[i]) <= kSharpLse) {
      return {0.0f, gradients.lse[i], 0.0f};
    } else {
      const auto found =
          TermSums<S>::sum_row(k, row, z, logits.dtype, logits.classes, Weights(), memory.sums);
      norm = {found.m, float(std::log1p(found.u)), 0.0f};
    }
    if (!row.capped() && !std::isfinite(norm.from)) norm.from = kNaN;  // no softmax
    return norm;
  }

  // The coefficients common to all columns of a row: p (a + b (d - mean)) - s q.
  struct Shared {
    F above, mean, a, b, constant, s, inverse_temperature;

    Shared(const Row& row, const Normaliser& norm, const Coefficients& c, const Weights& weights) {
      // Without a softcap, 1 / temperature is included in the coefficients.
      const double slope = row.capped() ? 1.0 : 1 / row.temperature;
      above = S::set(norm.above);
      mean = S::set(norm.mean);
      a = S::set(float(c.probability * slope));
      b = S::set(float(c.entropy * slope));
      const bool constant_q =
          weights.weighing == Weighing::kUniform || weights.weighing == Weighing::kProbabilities;
      constant = S::set(constant_q ? float(-(c.target * slope) * weights.uniform) : 0.0f);
      double by_weight = c.target * slope;
      if (weights.weighing == Weighing::kClasses) by_weight *= weights.uniform;
      if (weights.weighing == Weighing::kProbabilities) by_weight *= weights.share;
      s = S::set(float(-by_weight));
      inverse_temperature = S::set(float(1 / row.temperature));
    }
  };

  // q of class weights w and probabilities p.
  [[gnu::always_inline]] static F q_of(const Weights& weights, F w, F p) {
    return S::mul(w, S::madd(S::set(weights.share), p, S::set(weights.uniform)));
  }
  // What column i adds to a chunk's Total, the same bits.
  static float added_by(const Weights& weights, const Chunk& q, int64_t i) {
    if (weights.weighing == Weighing::kProbabilities) return q.p[i];
    if (weights.weighing != Weighing::kBoth) return 0.0f;
    return S::reduce_max(q_of(weights, S::set(q.w[i]), S::set(q.p[i])));
  }

  // The sum of a chunk's q (kProbabilities: p): of the columns with the maximum, and of the others.
  struct Total {
    float maximal = 0, others = 0;
  };

  // Writes a chunk's columns to `out` and returns their Total, with probabilities.
  template <bool kCapped, bool kEntropy, Weighing kWeighing>
  static Total write_chunk(const Constants& k, const Row& row, const Normaliser& norm,
                           const Shared& shared, const Weights& weights, const float* z, int64_t n,
                           const Chunk& q, float* out) {
    const typename Base::template Distance<kCapped> from(k, row, norm.from);
    const F normal = S::set(kNormal), far = S::set(-1e4f),
            minus_above = S::sub(S::set(0.0f), shared.above);
    const F maximum = S::set(norm.from);
    F maximal = S::set(0.0f), others = maximal;
    const auto add_up = [&](F x, F q_of_x) __attribute__((always_inline)) {
      maximal = S::add(maximal, S::zero_unless(S::equal(x, maximum), q_of_x));
      others = S::add(others, S::zero_unless(S::not_equal(x, maximum), q_of_x));
    };
    const auto gradient = [&](F x, const Chunk& at, int64_t i) __attribute__((always_inline)) {
      F slope;
      const F distance = from(k, row, x, slope);
      const F log_p = S::madd(distance, row.high, minus_above);
      const F e = S::zero_unless(S::not_less(log_p, normal), Base::exponential(k, log_p));
      F a = shared.a, g;
      if (kEntropy) {
        const F d = S::max(far, S::mul(distance, row.high));
        a = S::madd(shared.b, S::sub(d, shared.mean), a);
      }
      if constexpr (kWeighing == Weighing::kNone || kWeighing == Weighing::kUniform) {
        g = S::madd(e, a, shared.constant);
      } else if constexpr (kWeighing == Weighing::kClasses) {
        g = S::madd(S::load(at.w + i), shared.s, S::mul(e, a));
      } else if constexpr (kWeighing == Weighing::kProbabilities) {
        const F p = S::load(at.p + i);
        add_up(x, p);
        g = S::madd(p, shared.s, S::madd(e, a, shared.constant));
      } else {
        const F both = q_of(weights, S::load(at.w + i), S::load(at.p + i));
        add_up(x, both);
        g = S::madd(both, shared.s, S::mul(e, a));
      }
      return kCapped ? S::mul(g, S::mul(slope, shared.inverse_temperature)) : g;
    };
    int64_t i = 0;
    for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
      const F first = gradient(S::load(z + i), q, i);
      const F second = gradient(S::load(z + i + kWidth), q, i + kWidth);
      S::store(out + i, first);
      S::store(out + i + kWidth, second);
    }
    for (; i < n; i += kWidth) {
      const int64_t count = std::min<int64_t>(kWidth, n - i);
      alignas(64) float some_z[kWidth], w[kWidth], p[kWidth], found[kWidth];
      for (int64_t j = 0; j < kWidth; ++j) {
        const bool there = j < count;
        some_z[j] = there ? z[i + j] : 0.0f;
        w[j] = there && q.w != nullptr ? q.w[i + j] : 0.0f;
        p[j] = there && q.p != nullptr ? q.p[i + j] : 0.0f;
      }
      S::store(found, gradient(S::load(some_z), {w, p, nullptr}, 0));
      for (int64_t j = 0; j < count; ++j) out[i + j] = found[j];
    }
    return {S::reduce_add(maximal), S::reduce_add(others)};
  }
  template <bool kCapped>
  static Total write_chunk(const Constants& k, const Row& row, const Normaliser& norm,
                           const Shared& shared, const Weights& weights, bool by_entropy,
                           const float* z, int64_t n, const Chunk& q, float* out) {
    const auto write = [&](auto kernel) {
      return kernel(k, row, norm, shared, weights, z, n, q, out);
    };
    switch (weights.weighing) {
      case Weighing::kClasses:
        return write(write_chunk<kCapped, false, Weighing::kClasses>);
      case Weighing::kProbabilities:
        return write(write_chunk<kCapped, false, Weighing::kProbabilities>);
      case Weighing::kBoth:
        return write(write_chunk<kCapped, false, Weighing::kBoth>);
      case Weighing::kUniform:
      case Weighing::kNone:
        break;
    }
    if (by_entropy) return write(write_chunk<kCapped, true, Weighing::kNone>);
    return write(write_chunk<kCapped, false, Weighing::kNone>);
  }

  // Writes the gradient of the row z. `label` is its label, unused with probabilities.
  static void write_row(const Constants& k, const Logits& logits, const Row& row, int64_t i,
                        int64_t label, const TargetWeights& targets, const TermGradients& gradients,
                        const Coefficients& c, void* to, bool stream, Memory& memory) {
    const int64_t classes = logits.classes;
    const LogitDtype dtype = logits.dtype;
    const void* z = Columns::row_of(logits, i);
    const Normaliser norm = normaliser(k, row, z, logits, gradients, i, memory);
    Weights weights;
    if (c.target != 0.0f) weights = Weights(targets, i);
    const bool soft = targets.has_probabilities();
    // Where the gradient is corrected: at the label or, with probabilities, at the maximum.
    int64_t place = !soft && uint64_t(label) < uint64_t(classes) ? label : -1;
    double others = 0;  // sum of q over all columns but `place`, with probabilities
    const Shared shared(row, norm, c, weights);
    int64_t n;
    for (int64_t start = 0; start < classes; start += n) {
      n = std::min(kChunk, classes - start);
      if (start == 0 && stream)  // aligned to cache lines from the second chunk on
        n = std::min(n, kChunk - 64 + Columns::to_next_line(dtype, to));
      const float* x = Columns::floats(z, dtype, start, n, memory.sums.z);
      const Chunk q = weights.chunk(start, n, memory.sums.p);
      const Total total = row.capped()
                              ? write_chunk<true>(k, row, norm, shared, weights, c.entropy != 0.0f,
                                                  x, n, q, memory.out.x)
                              : write_chunk<false>(k, row, norm, shared, weights, c.entropy != 0.0f,
                                                   x, n, q, memory.out.x);
      double tied = double(total.maximal);  // of the columns that tie with `place`
      if (soft && place < 0) {
        const int64_t found = Columns::find(x, LogitDtype::kFloat32, 0, n, norm.from);
        if (found < n) {
          place = start + found;
          tied -= double(added_by(weights, q, found));
        }
      }
      others += weights.weighing == Weighing::kProbabilities
                    ? double(weights.share) * (double(total.others) + tied) +
                          double(weights.uniform) * double(n)
                    : double(total.others) + tied;
      Columns::write(dtype, memory.out.x, start, n, to, stream);
    }
    if (place < 0) return;
    if (weights.weighing == Weighing::kProbabilities) others -= double(weights.uniform);
    const double log_p = soft ? -double(norm.above) : -double(gradients.loss[i]);
    double at =
        double(c.rest) + double(c.target) * others + double(c.probability) * std::expm1(log_p);
    const double there = Columns::element(z, dtype, place);
    if (c.entropy != 0.0f) {
      const double p_there = std::exp(log_p), d = row.scale * row.distance(there, norm.from);
      if (p_there > 0) at += double(c.entropy) * p_there * (d - double(norm.mean));
    }
    at = at * row.slope(there) + (norm.from - norm.from);
    const float value = float(at);
    Columns::write(dtype, &value, place, 1, to, false);
  }
};

}  // namespace emp
