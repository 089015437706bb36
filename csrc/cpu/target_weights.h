// The weights q_j of a row's log-probabilities, in addition to its label's, for one SIMD target.
#pragma once

#include <algorithm>

#include "columns.h"
#include "row_terms.h"

namespace emp {

// Which of weight and probabilities q_j = weight_j * (share * probabilities_j + uniform) has.
enum class Weighing { kNone, kUniform, kClasses, kProbabilities, kBoth };

// sum w d and sum w over columns at distances d.
template <class Number>
struct Dot {
  Number product{}, total{};
};

template <class S>
struct WeightsOfRow {
  using F = typename S::F;
  using Columns = emp::Columns<S>;

  const float* weight = nullptr;
  const void* probabilities = nullptr;  // one row
  LogitDtype dtype = LogitDtype::kFloat32;
  float share = 0, uniform = 0;
  Weighing weighing = Weighing::kNone;

  WeightsOfRow() = default;
  WeightsOfRow(const TargetWeights& targets, int64_t i)
      : weight(targets.weight), share(targets.share), uniform(targets.uniform) {
    if (!targets.present) return;
    weighing = weight == nullptr ? Weighing::kUniform : Weighing::kClasses;
    if (!targets.has_probabilities()) return;
    weighing = weight == nullptr ? Weighing::kProbabilities : Weighing::kBoth;
    dtype = targets.probabilities.dtype;
    probabilities = Columns::row_of(targets.probabilities, i);
  }

  // Of some columns; null if `weighing` needs none.
  struct Chunk {
    const float *w, *p;
    const char* next;  // probabilities of the next columns
  };
  Chunk chunk(int64_t start, int64_t n, typename Columns::Buffer& buffer) const {
    Chunk found{weight == nullptr ? nullptr : weight + start, nullptr, nullptr};
    if (probabilities == nullptr) return found;
    found.p = Columns::floats(probabilities, dtype, start, n, buffer);
    found.next = static_cast<const char*>(probabilities) + (start + n) * Columns::size_of(dtype);
    return found;
  }

  // Sums over columns at distances d: of d, of d times q without `uniform` (kBoth: times q), and of
  // d times the probabilities.
  struct Sums {
    F d, product, total, p_product, p_total;
    Sums() { d = product = total = p_product = p_total = S::set(0.0f); }
    Sums& operator+=(const Sums& other) {
      d = S::add(d, other.d);
      product = S::add(product, other.product);
      total = S::add(total, other.total);
      p_product = S::add(p_product, other.p_product);
      p_total = S::add(p_total, other.p_total);
      return *this;
    }
  };
  template <Weighing kWeighing>
  [[gnu::always_inline]] void add(F d, const Chunk& c, int64_t i, Sums& s) const {
    if constexpr (kWeighing == Weighing::kUniform || kWeighing == Weighing::kProbabilities)
      s.d = S::add(s.d, d);
    if constexpr (kWeighing == Weighing::kClasses) add(S::load(c.w + i), d, s.product, s.total);
    if constexpr (kWeighing == Weighing::kProbabilities || kWeighing == Weighing::kBoth) {
      const F p = S::load(c.p + i);
      add(p, d, s.p_product, s.p_total);
      if constexpr (kWeighing == Weighing::kBoth)
        add(S::mul(S::load(c.w + i), S::madd(S::set(share), p, S::set(uniform))), d, s.product,
            s.total);
    }
  }

  struct Dots {
    Dot<double> target, label;  // with q, and with the probabilities

    Dots& operator+=(const Dots& other) {
      target.product += other.target.product, target.total += other.target.total;
      label.product += other.label.product, label.total += other.label.total;
      return *this;
    }
    // Update after all distances grow by delta.
    void move(double delta) {
      if (target.total != 0) target.product += target.total * delta;
      if (label.total != 0) label.product += label.total * delta;
    }
  };
  // From the sums over n columns.
  template <Weighing kWeighing>
  Dots dots(const Sums& s, int64_t n) const {
    const auto sum = [](F x) { return double(S::reduce_add(x)); };
    const auto times = [](double w, double x) { return w == 0 ? 0.0 : w * x; };
    Dots found;
    if constexpr (kWeighing == Weighing::kProbabilities || kWeighing == Weighing::kBoth)
      found.label = {sum(s.p_product), sum(s.p_total)};
    if constexpr (kWeighing == Weighing::kUniform)
      found.target = {times(uniform, sum(s.d)), uniform * double(n)};
    if constexpr (kWeighing == Weighing::kClasses)
      found.target = {times(uniform, sum(s.product)), times(uniform, sum(s.total))};
    if constexpr (kWeighing == Weighing::kProbabilities)
      found.target = {times(share, found.label.product) + times(uniform, sum(s.d)),
                      times(share, found.label.total) + uniform * double(n)};
    if constexpr (kWeighing == Weighing::kBoth) found.target = {sum(s.product), sum(s.total)};
    return found;
  }

 private:
  // A weight of 0 adds 0, even if d is -inf.
  [[gnu::always_inline]] static void add(F w, F d, F& product, F& total) {
    product = S::madd(w, S::zero_unless(S::not_equal(w, S::set(0.0f)), d), product);
    total = S::add(total, w);
  }
};

}  // namespace emp
