// One pass over rows of logits: maximum and exponential sums, for any SIMD target.
//
// A row is processed in chunks that fit in the L1 cache: a chunk's maximum first (this is the read
// from memory), then its exponentials relative to the running maximum. One maximal element is left
// out of every sum, so that u = sum(exp(z - m)) - 1 keeps its relative accuracy if the row is
// confident and u is tiny. Rows of few classes are processed kWidth at a time, one lane each.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "dtypes.h"
#include "exponentials.h"

namespace emp {

// m = max z; over all elements but one maximal one, with e = exp(z - m): u = sum e,
// t = sum e * (z - m), q = sum e^2. A NaN among the logits makes u NaN; m is -inf for a row
// without a logit above -inf, and u is then 0.
struct RowSums {
  float m, u, t, q;
};

// The sums of kRows rows, one field each.
template <int kRows>
struct RowSumsOf {
  alignas(64) float m[kRows] = {}, u[kRows] = {}, t[kRows] = {}, q[kRows] = {};
  int64_t top[kRows];  // set only for statistics

  void set(int i, const RowSums& sums) {
    m[i] = sums.m;
    u[i] = sums.u;
    t[i] = sums.t;
    q[i] = sums.q;
  }
  RowSums of(int i) const { return {m[i], u[i], t[i], q[i]}; }
};

// The sums of one row of any number of classes. Only with kStatistics, because of their cost: q,
// and in `top` the lowest index of m, if m and u are finite. This is most of a target's code:
// sum_rows.h has the body, which only row_sums_<target>.cpp instantiates, for all callers.
template <class S, class T, bool kStatistics>
struct RowSummer {
  static RowSums row_sums(const typename Exponentials<S>::Constants& k, const T* row,
                          int64_t classes, int64_t* top);
};

template <class S>
struct RowKernel : Exponentials<S> {
  using E = Exponentials<S>;
  using E::kPair, E::kStepLimit;
  using typename E::Against, typename E::Constants, typename E::Range, typename E::Reference;
  using typename E::F, typename E::M, typename E::Sums;
  static constexpr int64_t kFewClasses = 48;  // up to this many, a lane per row is faster

  static constexpr float kInf = std::numeric_limits<float>::infinity();
  static constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  static constexpr double kTinySum = 1e-30;  // per element: the neglected part is below 1e-7 of it

  template <bool kStatistics, class T>
  static RowSums row_sums(const Constants& k, const T* row, int64_t classes,
                          int64_t* top = nullptr) {
    return RowSummer<S, T, kStatistics>::row_sums(k, row, classes, top);
  }

  template <class T>
  static float highest_of(const T* z, int64_t n) {
    F m0 = S::set(-kInf), m1 = m0, m2 = m0, m3 = m0, a, b;
    int64_t i = 0;
    for (; i + 2 * kPair <= n; i += 2 * kPair) {
      S::load2(z + i, a, b);
      m0 = S::max(m0, a);
      m1 = S::max(m1, b);
      S::load2(z + i + kPair, a, b);
      m2 = S::max(m2, a);
      m3 = S::max(m3, b);
    }
    for (; i + kPair <= n; i += kPair) {
      S::load2(z + i, a, b);
      m0 = S::max(m0, a);
      m1 = S::max(m1, b);
    }
    if (i < n) {
      S::load2_first(z + i, int(n - i), a, b);
      m2 = S::max(m2, a);
      m3 = S::max(m3, b);
    }
    return S::reduce_max(S::max(S::max(m0, m1), S::max(m2, m3)));
  }
  // Lowest index of `value` among n elements, or n.
  template <class T>
  static int64_t find(const T* z, int64_t n, float value) {
    const F v = S::set(value);
    const auto equal_in = [&](int64_t i) __attribute__((always_inline)) {
      F a, b;
      S::load2(z + i, a, b);
      return S::either(S::equal(a, v), S::equal(b, v));
    };
    int64_t i = 0;
    for (; i + 4 * kPair <= n; i += 4 * kPair)  // one branch for so many
      if (S::any(S::either(S::either(equal_in(i), equal_in(i + kPair)),
                           S::either(equal_in(i + 2 * kPair), equal_in(i + 3 * kPair)))))
        break;
    while (i + kPair <= n && !S::any(equal_in(i))) i += kPair;
    while (i < n && to_float(z[i]) != value) ++i;
    return i;
  }
  // Calls f(index of its pair, vector), padded with -inf, until it returns false.
  template <class T, class Function>
  static void for_each_vector(const T* z, int64_t n, Function&& f) {
    F a, b;
    for (int64_t i = 0; i < n; i += kPair) {
      if (i + kPair <= n)
        S::load2(z + i, a, b);
      else
        S::load2_first(z + i, int(n - i), a, b);
      if (!f(i, a) || !f(i, b)) return;
    }
  }

  // columns[c][lane] is element c of row `lane`.
  template <class T>
  static void columns_of(const T* const* rows, int64_t classes, float (*columns)[S::kWidth]) {
    if constexpr (S::kTransposes) {
      for (int64_t start = 0; start < classes; start += S::kWidth) {
        const int n = int(std::min<int64_t>(S::kWidth, classes - start));
        F block[S::kWidth];
        for (int lane = 0; lane < S::kWidth; ++lane)
          block[lane] = S::load_first(rows[lane] + start, n);
        S::transpose(block);
        for (int c = 0; c < n; ++c) S::store(columns[start + c], block[c]);
      }
    } else {
      for (int lane = 0; lane < S::kWidth; ++lane)
        for (int64_t c = 0; c < classes; ++c) columns[c][lane] = to_float(rows[lane][c]);
    }
  }

  // Sums of kWidth rows of at most kFewClasses classes, one lane each, written from position
  // `first` of the results on: rows[lane] points to row `lane`; a row may occur twice.
  template <bool kStatistics, class T, int kRows>
  static void few_class_sums(const Constants& k, const T* const* rows, int64_t classes, int first,
                             RowSumsOf<kRows>& results) {
    alignas(64) float columns[kFewClasses][S::kWidth];
    columns_of(rows, classes, columns);
    F m = S::set(-kInf), nan = S::set(0.0f);
    for (int64_t c = 0; c < classes; ++c) {
      const F z = S::load(columns[c]);
      m = S::max(m, z);
      nan = S::add(nan, z);  // NaN if a logit is, or for +inf and -inf together
    }
    const Reference at(k, m, Against::kStep);
    Sums s;
    M left_out = S::none();
    F from_top = S::set(0.0f);  // number of elements from the first maximal one on
    for (int64_t c = 0; c < classes; ++c) {
      const F z = S::load(columns[c]);
      // The first maximal element of each lane is left out.
      const M use = S::either(left_out, S::not_equal(z, m));
      left_out = S::either(left_out, S::equal(z, m));
      if (kStatistics) from_top = S::add(from_top, S::zero_unless(left_out, k.one));
      E::template add_vector<Range::kAny, true, Against::kStep, kStatistics>(k, z, at, use, s);
    }
    s = E::template finished<Range::kAny, Against::kStep, kStatistics>(s, at);
    if (kStatistics) {
      alignas(64) float count[S::kWidth];
      S::store(count, from_top);
      for (int lane = 0; lane < S::kWidth; ++lane)
        results.top[first + lane] = classes - int64_t(count[lane]);
    }
    S::store(results.m + first, m);
    S::store(results.u + first, s.u);
    S::store(results.t + first, s.t);
    S::store(results.q + first, s.q);
    // Rare rows: NaN or infinite, huge, or with a u so small that denormals matter.
    const F limit = S::set(kStepLimit), tiny = S::set(float(kTinySum) * float(classes));
    const M plain =
        S::both(S::both(S::equal(S::sub(nan, nan), S::set(0.0f)), S::not_less(s.u, tiny)),
                S::both(S::not_less(limit, m), S::not_less(m, S::sub(S::set(0.0f), limit))));
    if (S::count(plain) == S::kWidth) return;
    alignas(64) float is_plain[S::kWidth];
    S::store(is_plain, S::zero_unless(plain, k.one));
    for (int lane = 0; lane < S::kWidth; ++lane)
      if (is_plain[lane] == 0.0f)
        results.set(first + lane,
                    row_sums<kStatistics>(k, rows[lane], classes, &results.top[first + lane]));
  }
};

}  // namespace emp
