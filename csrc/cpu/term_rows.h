// Rows [begin, end) of row_terms and its gradient, for one SIMD target: the body of
// row_terms_<target>.cpp.
//
// A chunk of a row is widened to float32, adjusted against its own maximum and reduced, all in the
// first-level cache; chunks merge in double. What a call asks for is looked at once a chunk, so
// that one body serves every option, and only widening and narrowing are compiled for each type.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "row_sums.h"
#include "row_terms.h"
#include "stream.h"

namespace emp {

template <class S>
struct TermRows : RowKernel<S> {
  using Kernel = RowKernel<S>;
  using E = typename Kernel::E;
  using Kernel::kInf, Kernel::kNaN, Kernel::kTinySum;
  using typename E::Against, typename E::Constants, typename E::F, typename E::Range;
  static constexpr int64_t kChunk = 1024;
  static constexpr int kWidth = S::kWidth;
  static constexpr float kSharpLse =
      32.0f;  // as gradient_rows.h's: beyond it, sums are found again

  struct alignas(64) Buffer {
    float x[kChunk + 2 * kWidth] = {};
  };

  // ---- elements in their order, whatever their type ----

  template <class T>
  static void widen(const void* from, int64_t start, int64_t n, float* to) {
    const T* z = static_cast<const T*>(from) + start;
    for (int64_t i = 0; i < n; ++i) to[i] = to_float(z[i]);
  }
  // n elements of a row from `start` on: where they lie, or in `buffer`.
  static const float* floats(const void* row, LogitDtype dtype, int64_t start, int64_t n,
                             Buffer& buffer) {
    switch (dtype) {
      case LogitDtype::kFloat16:
        widen<Float16>(row, start, n, buffer.x);
        return buffer.x;
      case LogitDtype::kBFloat16:
        widen<BFloat16>(row, start, n, buffer.x);
        return buffer.x;
      case LogitDtype::kFloat32:
        break;
    }
    return static_cast<const float*>(row) + start;
  }
  static double element(const void* row, LogitDtype dtype, int64_t i) {
    if (dtype == LogitDtype::kFloat16) return to_float(static_cast<const Float16*>(row)[i]);
    if (dtype == LogitDtype::kBFloat16) return to_float(static_cast<const BFloat16*>(row)[i]);
    return static_cast<const float*>(row)[i];
  }
  template <class T>
  static void narrow(const float* from, int64_t n, T* to) {
    for (int64_t i = 0; i < n; ++i) from_float(from[i], to[i]);
  }
  // Calls f(elements, n), kWidth of them readable from each multiple of kWidth below n: all but
  // the last vector where they lie.
  template <class Function>
  [[gnu::always_inline]] static void for_vectors(const float* z, int64_t n, Function&& f) {
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) f(i, S::load(z + i));
    if (i == n) return;
    alignas(64) float padded[kWidth];
    std::fill(padded, padded + kWidth, -kInf);
    std::copy(z + i, z + n, padded);
    f(i, S::load(padded));
  }

  static void row_of(const Logits& logits, int64_t i, const void*& row) {
    row = logits.dtype == LogitDtype::kFloat32 ? static_cast<const void*>(logits.row<float>(i))
                                               : logits.row<BFloat16>(i);
  }

  // ---- adjusted logits ----

  // tanh = whole + rest, whole 0 or 1 with the sign: near 1 the rest keeps the accuracy of what is
  // missing. slope = 1 - tanh^2.
  struct Tanh {
    F whole, rest, slope;
  };
  [[gnu::always_inline]] static F exponential(const Constants& k, F d) {  // 0 below exp(kNormal)
    const F magic_k = S::madd(d, k.steps_per_nat, k.magic), steps = S::sub(magic_k, k.magic);
    const F r = S::madd(steps, k.minus_step_low, S::fma(steps, k.minus_step, d));
    const F e = S::mul(S::exp2_scaled(k.table, magic_k), Kernel::polynomial(k, r));
    return S::zero_unless(S::not_less(d, k.normal), e);
  }
  [[gnu::always_inline]] static Tanh tanh(const Constants& k, F x) {
    constexpr float kSmall = 0.625f;
    const F zero = S::set(0.0f), size = S::max(S::sub(zero, x), x);
    // x + x^3 P(x^2), relative error 4e-9.
    const F z = S::mul(x, x);
    F series = S::madd(z, S::set(-0.00570496f), S::set(0.02063906f));
    series = S::madd(z, series, S::set(-0.05373971f));
    series = S::madd(z, series, S::set(0.13331442f));
    series = S::madd(z, series, S::set(-0.33333282f));
    const F small = S::madd(S::mul(x, z), series, x);
    const auto is_large = S::not_less(size, S::set(kSmall));
    if (S::count(is_large) == 0) return {zero, small, S::sub(k.one, S::mul(small, small))};
    // 1 - 2 e / (1 + e), e = exp(-2 |x|).
    const F e = exponential(k, S::max(S::set(-40.0f), S::mul(size, S::set(-2.0f))));
    const F w = S::div(k.one, S::add(k.one, e)), ew = S::mul(e, w);
    const auto is_small = S::not_less(S::set(std::nextafterf(kSmall, 0.0f)), size);
    const auto positive = S::not_less(x, zero);
    const auto with_sign = [&](F y) __attribute__((always_inline)) {
      return S::sub(S::zero_unless(positive, S::add(y, y)), y);
    };
    const F rest = S::zero_unless(is_large, with_sign(S::mul(S::set(-2.0f), ew)));
    const F slope = S::zero_unless(is_large, S::mul(S::set(4.0f), S::mul(ew, w)));
    const F small_slope = S::zero_unless(is_small, S::sub(k.one, S::mul(small, small)));
    return {S::zero_unless(is_large, with_sign(k.one)),
            S::add(rest, S::zero_unless(is_small, small)), S::add(slope, small_slope)};
  }

  // One row's adjustment; `scale` is 1 / temperature, with a softcap softcap / temperature, as two
  // floats, so that it does not round.
  struct Row {
    double temperature, softcap;
    F to_cap, high, low;

    Row(const Adjustment& adjustment, int64_t i)
        : temperature(adjustment.temperature_of(i)), softcap(adjustment.softcap) {
      const double scale = (softcap > 0 ? softcap : 1.0) / temperature;
      const float first = float(scale);
      high = S::set(first);
      low = S::set(float(scale - double(first)));
      to_cap = S::set(softcap > 0 ? float(1 / softcap) : 0.0f);
    }
    bool capped() const { return softcap > 0; }
    double adjusted(double z) const {
      return (capped() ? softcap * std::tanh(z / softcap) : z) / temperature;
    }
    // adjusted(z) - adjusted(from), which does not cancel without a softcap.
    double difference(double z, double from) const {
      return capped() ? adjusted(z) - adjusted(from) : (z - from) / temperature;
    }
    double slope(double z) const {
      const double tanh = capped() ? std::tanh(z / softcap) : 0.0;
      return (1 - tanh * tanh) / temperature;
    }
  };

  // What logits are adjusted against: adjusted(z) - adjusted(from).
  template <bool kCapped>
  struct AdjustedFrom {
    F whole, rest;  // without a softcap whole is z itself

    AdjustedFrom(const Constants& k, const Row& row, float from) {
      const F z = S::set(from);
      if (kCapped) {
        const Tanh t = tanh(k, S::mul(z, row.to_cap));
        whole = t.whole, rest = t.rest;
      } else {
        whole = z, rest = S::set(0.0f);
      }
    }
    [[gnu::always_inline]] F operator()(const Constants& k, const Row& row, F z, F& slope) const {
      F d;
      if constexpr (kCapped) {
        const Tanh t = tanh(k, S::mul(z, row.to_cap));
        d = S::add(S::sub(t.whole, whole), S::sub(t.rest, rest));
        slope = t.slope;
      } else {
        d = S::sub(z, whole);
        slope = k.one;
      }
      // -inf * low would be NaN.
      const F lost = S::zero_unless(S::not_less(d, S::set(-FLT_MAX)), S::mul(d, row.low));
      return S::madd(d, row.high, lost);
    }
  };

  // out = min(0, adjusted(z) - adjusted(maximum)).
  template <bool kCapped>
  static void below_maximum(const Constants& k, const Row& row, const float* z, int64_t n,
                            float maximum, float* out) {
    const AdjustedFrom<kCapped> against(k, row, maximum);
    const F zero = S::set(0.0f);
    for_vectors(z, n, [&](int64_t i, F x) __attribute__((always_inline)) {
      F slope;
      F d = against(k, row, x, slope);
      if (kCapped) d = S::sub(zero, S::max(zero, S::sub(zero, d)));  // roundings are not monotone
      S::store(out + i, d);
    });
  }

  // ---- weights ----

  // Probabilities (or null) of a row.
  static const void* probabilities_of(const TargetWeights& targets, int64_t i) {
    const void* row = nullptr;
    if (targets.has_probabilities()) row_of(targets.probabilities, i, row);
    return row;
  }
  // q of columns [start, start + n).
  static void weights(const TargetWeights& targets, const float* p, int64_t start, int64_t n,
                      float* q) {
    const float share = targets.share, uniform = targets.uniform;
    if (p == nullptr)
      std::fill(q, q + n, uniform);
    else
      for (int64_t i = 0; i < n; ++i) q[i] = share * p[i] + uniform;
    if (targets.weight == nullptr) return;
    const float* w = targets.weight + start;
    for (int64_t i = 0; i < n; ++i) q[i] *= w[i];
  }

  struct Dot {
    double product = 0, total = 0;  // sum q d, sum q
  };
  static Dot dot(const float* q, const float* d, int64_t n) {
    const F zero = S::set(0.0f);
    F p0 = zero, p1 = zero, t0 = zero, t1 = zero;
    const auto add = [&](int64_t i, F& p, F& t) __attribute__((always_inline)) {
      const F x = S::load(q + i);
      t = S::add(t, x);
      p = S::add(p, S::zero_unless(S::not_equal(x, zero), S::mul(x, S::load(d + i))));
    };
    int64_t i = 0;
    for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
      add(i, p0, t0);
      add(i + kWidth, p1, t1);
    }
    Dot sum{double(S::reduce_add(S::add(p0, p1))), double(S::reduce_add(S::add(t0, t1)))};
    for (; i < n; ++i) {
      sum.total += double(q[i]);
      if (q[i] != 0.0f) sum.product += double(q[i]) * double(d[i]);
    }
    return sum;
  }

  // ---- a row's sums ----

  // m is the raw maximum; u and t are row_sums.h's, of adjusted logits; the dots are against the
  // maximum: `target` of q, `label` of the probabilities themselves.
  struct Found {
    float m = -kInf;
    double u = 0, t = 0;
    Dot target, label;
  };

  static bool has_nan(const float* z, int64_t n) {
    bool found = false;
    for_vectors(z, n, [&](int64_t, F x) { found |= S::any_nan(x); });
    return found;
  }

  static void merge(const Row& row, const Found& chunk, bool first, Found& all) {
    const bool grows = first || chunk.m > all.m;
    const double delta = first ? 0 : -std::fabs(row.difference(chunk.m, all.m));
    const double f = std::exp(delta);
    const auto shift = [&](Dot& total, const Dot& piece) {
      if (grows) total.product += total.total != 0 ? total.total * delta : 0;
      total.product += piece.product;
      if (!grows && piece.total != 0) total.product += piece.total * delta;
      total.total += piece.total;
    };
    shift(all.target, chunk.target);
    shift(all.label, chunk.label);
    if (first) {
      all.m = chunk.m, all.u = chunk.u, all.t = chunk.t;
    } else if (grows) {
      all.t = chunk.t + f * (all.t + delta * (all.u + 1));
      all.u = chunk.u + f * (all.u + 1);
      all.m = chunk.m;
    } else {
      all.t += f * (chunk.t + delta * (chunk.u + 1));
      all.u += f * (chunk.u + 1);
    }
  }

  struct Memory {
    Buffer z, d, p, q, out;
    alignas(64) char narrowed[kChunk * 4];
  };

  template <bool kTiny>
  static Found sum_chunks(const Constants& k, const Row& row, const void* z, LogitDtype dtype,
                          int64_t classes, const TargetWeights& targets, const void* p,
                          Memory& memory) {
    constexpr double kUnit = kTiny ? E::kTinyUnit : 1.0;
    constexpr Range kRange = kTiny ? Range::kTiny : Range::kAny;
    Found all;
    bool first = true;
    Dot nowhere_target, nowhere_label;  // of chunks at -inf
    for (int64_t start = 0; start < classes; start += kChunk) {
      const int64_t n = std::min(kChunk, classes - start);
      const float* x = floats(z, dtype, start, n, memory.z);
      float* const d = memory.d.x;
      Found chunk;
      chunk.m = Kernel::highest_of(x, n);
      const bool empty = !row.capped() && chunk.m == -kInf;
      if (!row.capped() && (chunk.m == kInf || (empty && has_nan(x, n)))) {
        all.m = chunk.m, all.t = kNaN;
        all.u = chunk.m == kInf && !has_nan(x, n) ? 0 : kNaN;
        return all;
      }
      if (row.capped())
        below_maximum<true>(k, row, x, n, chunk.m, d);
      else
        below_maximum<false>(k, row, x, n, empty ? 0.0f : chunk.m, d);
      if (!empty) {
        typename E::Sums s;
        const int64_t left_out =
            E::template add_run<kRange, true, Against::kNearStep, false>(k, d, n, 0.0f, s);
        chunk.u = double(S::reduce_add(s.u)) / kUnit + double(left_out - 1);
        chunk.t = double(S::reduce_add(s.t)) / kUnit;
      }
      if (targets.present) {
        const float* probabilities = nullptr;
        if (p != nullptr) {
          probabilities = floats(p, targets.probabilities.dtype, start, n, memory.p);
          chunk.label = dot(probabilities, d, n);
        }
        weights(targets, probabilities, start, n, memory.q.x);
        chunk.target = dot(memory.q.x, d, n);
      }
      if (empty) {
        nowhere_target.product += chunk.target.product, nowhere_target.total += chunk.target.total;
        nowhere_label.product += chunk.label.product, nowhere_label.total += chunk.label.total;
        continue;
      }
      merge(row, chunk, first, all);
      first = false;
    }
    all.target.product += nowhere_target.product, all.target.total += nowhere_target.total;
    all.label.product += nowhere_label.product, all.label.total += nowhere_label.total;
    return all;
  }
  static Found sum_row(const Constants& k, const Row& row, const void* z, LogitDtype dtype,
                       int64_t classes, const TargetWeights& targets, const void* p,
                       Memory& memory) {
    const Found found = sum_chunks<false>(k, row, z, dtype, classes, targets, p, memory);
    if (!(found.u < kTinySum * double(classes))) return found;
    return sum_chunks<true>(k, row, z, dtype, classes, targets, p, memory);
  }

  // The first row with a bad label, or -1.
  static int64_t terms(const Logits& logits, const Labels& labels, const Adjustment& adjustment,
                       const TargetWeights& targets, const TermOutputs& out, int64_t begin,
                       int64_t end) {
    const Constants k;
    Memory memory;
    int64_t bad = -1;
    for_each_label(labels, begin, end, [&](int64_t i, int64_t y) {
      if (labels.ignores(y)) {
        for (float* field : {out.loss, out.entropy, out.lse, out.target, out.total, out.maximum,
                             out.above, out.mean})
          if (field != nullptr) field[i] = 0.0f;
        return;
      }
      const bool soft = targets.has_probabilities();
      if (!soft && uint64_t(y) >= uint64_t(logits.classes)) {
        if (bad < 0) bad = i;
        return;
      }
      const void* z;
      row_of(logits, i, z);
      const Row row(adjustment, i);
      const Found found = sum_row(k, row, z, logits.dtype, logits.classes, targets,
                                  probabilities_of(targets, i), memory);
      const double log_sum = std::log1p(found.u), mean = found.t / (1 + found.u);
      const double m = row.adjusted(double(found.m));
      double loss;
      if (soft)
        loss = found.label.total * log_sum - found.label.product;
      else
        loss = row.difference(found.m, element(z, logits.dtype, y)) + log_sum;
      out.loss[i] = float(loss);
      out.entropy[i] = float((log_sum - mean) + (m - m));  // NaN if m is not finite
      out.lse[i] = float(m + log_sum);
      if (targets.present) {
        out.target[i] = float(found.target.total * log_sum - found.target.product);
        out.total[i] = float(found.target.total);
      }
      out.maximum[i] = found.m;
      out.above[i] = float(log_sum);
      out.mean[i] = float(mean);
    });
    return bad;
  }

  // ---- the gradient ----

  struct Coefficients {
    float probability, entropy, target, rest;

    Coefficients(const TermGradients& g, int64_t i)
        : probability(g.probability[i]),
          entropy(g.entropy == nullptr ? 0.0f : g.entropy[i]),
          target(g.target == nullptr ? 0.0f : g.target[i]),
          rest(g.rest[i]) {}
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
      const Found found = sum_row(k, row, z, logits.dtype, logits.classes, {}, nullptr, memory);
      norm = {found.m, float(std::log1p(found.u)), 0.0f};
    }
    if (!row.capped() && !std::isfinite(norm.from)) norm.from = kNaN;  // no softmax
    return norm;
  }

  // Writes columns of the gradient by adjusted logits, times their slope, to memory.out.
  template <bool kCapped>
  static void gradient_chunk(const Constants& k, const Row& row, const float* z, int64_t n,
                             const Normaliser& norm, const Coefficients& c, const float* q,
                             float* out) {
    const AdjustedFrom<kCapped> against(k, row, norm.from);
    const F above = S::set(norm.above), mean = S::set(norm.mean), far = S::set(-1e4f);
    // Without a softcap 1 / temperature goes into the coefficients.
    const float slope_of_all = kCapped ? 1.0f : float(1 / row.temperature);
    const F a = S::set(c.probability * slope_of_all), b = S::set(c.entropy * slope_of_all);
    const F s = S::set(c.target * slope_of_all),
            inverse_temperature = S::set(float(1 / row.temperature));
    const bool has_b = c.entropy != 0.0f, has_s = c.target != 0.0f;
    for_vectors(z, n, [&](int64_t i, F x) __attribute__((always_inline)) {
      F slope;
      const F d = against(k, row, x, slope);
      F factor = a;
      if (has_b) factor = S::madd(b, S::sub(S::max(far, d), mean), a);
      F g = S::mul(exponential(k, S::sub(d, above)), factor);
      if (has_s) g = S::sub(g, S::mul(s, S::load(q + i)));
      if (kCapped) g = S::mul(g, S::mul(slope, inverse_temperature));
      S::store(out + i, g);
    });
  }

  template <class T>
  static void write(const float* g, int64_t n, T* to, bool stream, Memory& memory) {
    if constexpr (sizeof(T) == 4) {
      if (stream)
        write_past_caches(to, g, n * int64_t(sizeof(T)));
      else
        std::copy(g, g + n, to);
    } else if (stream) {
      T* const narrowed = reinterpret_cast<T*>(memory.narrowed);
      narrow(g, n, narrowed);
      write_past_caches(to, narrowed, n * int64_t(sizeof(T)));
    } else {
      narrow(g, n, to);
    }
  }
  static void write(LogitDtype dtype, const float* g, int64_t start, int64_t n, void* to,
                    bool stream, Memory& memory) {
    switch (dtype) {
      case LogitDtype::kFloat16:
        return write(g, n, static_cast<Float16*>(to) + start, stream, memory);
      case LogitDtype::kBFloat16:
        return write(g, n, static_cast<BFloat16*>(to) + start, stream, memory);
      case LogitDtype::kFloat32:
        break;
    }
    write(g, n, static_cast<float*>(to) + start, stream, memory);
  }

  // Lowest place of the raw value `m`, or classes.
  static int64_t place_of(const void* z, const Logits& logits, float m) {
    switch (logits.dtype) {
      case LogitDtype::kFloat16:
        return Kernel::find(static_cast<const Float16*>(z), logits.classes, m);
      case LogitDtype::kBFloat16:
        return Kernel::find(static_cast<const BFloat16*>(z), logits.classes, m);
      case LogitDtype::kFloat32:
        break;
    }
    return Kernel::find(static_cast<const float*>(z), logits.classes, m);
  }

  static void gradient(const Logits& logits, const Labels& labels, const Adjustment& adjustment,
                       const TargetWeights& targets, const TermGradients& gradients, void* out,
                       bool stream, int64_t begin, int64_t end) {
    const Constants k;
    Memory memory;
    const int64_t classes = logits.classes, size = logits.dtype == LogitDtype::kFloat32 ? 4 : 2;
    for_each_label(labels, begin, end, [&](int64_t i, int64_t y) {
      char* const to = static_cast<char*>(out) + i * classes * size;
      const Coefficients c(gradients, i);
      if (c.nothing()) {
        std::memset(to, 0, size_t(classes * size));
        return;
      }
      const void* z;
      row_of(logits, i, z);
      const void* const p = probabilities_of(targets, i);
      const Row row(adjustment, i);
      const Normaliser norm = normaliser(k, row, z, logits, gradients, i, memory);
      // Where the gradient is put right: at the label, or at the maximum among probabilities.
      int64_t place = p == nullptr ? y : place_of(z, logits, norm.from);
      if (uint64_t(place) >= uint64_t(classes)) place = -1;
      double others = 0;  // sum of q over all columns but `place`
      for (int64_t start = 0; start < classes; start += kChunk) {
        const int64_t n = std::min(kChunk, classes - start);
        const float* x = floats(z, logits.dtype, start, n, memory.z);
        float* const q = memory.q.x;
        if (c.target != 0.0f) {
          const float* probabilities =
              p == nullptr ? nullptr : floats(p, targets.probabilities.dtype, start, n, memory.p);
          weights(targets, probabilities, start, n, q);
          if (p != nullptr) {
            if (place >= start && place < start + n) q[place - start] = 0.0f;
            others += dot(q, q, n).total;
          }
        }
        if (row.capped())
          gradient_chunk<true>(k, row, x, n, norm, c, q, memory.out.x);
        else
          gradient_chunk<false>(k, row, x, n, norm, c, q, memory.out.x);
        write(logits.dtype, memory.out.x, start, n, to, stream, memory);
      }
      if (place < 0) return;
      const double log_p = p == nullptr ? -double(gradients.loss[i]) : -double(norm.above);
      double at =
          double(c.rest) + double(c.target) * others + double(c.probability) * std::expm1(log_p);
      const double p_there = std::exp(log_p), there = element(z, logits.dtype, place);
      if (c.entropy != 0.0f && p_there > 0)
        at += double(c.entropy) * p_there * (row.difference(there, norm.from) - double(norm.mean));
      at = at * row.slope(there) + (norm.from - norm.from);
      const float value = float(at);
      write(logits.dtype, &value, place, 1, to, false, memory);
    });
    if (stream) stream_fence();
  }
};

// What row_terms.cpp calls, one set for each target.
struct TermRowKernels {
  int64_t (*terms)(const Logits&, const Labels&, const Adjustment&, const TargetWeights&,
                   const TermOutputs&, int64_t, int64_t);
  void (*gradient)(const Logits&, const Labels&, const Adjustment&, const TargetWeights&,
                   const TermGradients&, void*, bool, int64_t, int64_t);
};

template <class S>
TermRowKernels term_row_kernels() {
  return {TermRows<S>::terms, TermRows<S>::gradient};
}

TermRowKernels term_row_kernels_avx512();
TermRowKernels term_row_kernels_avx2();
TermRowKernels term_row_kernels_portable();

}  // namespace emp
