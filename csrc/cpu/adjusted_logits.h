// Logits adjusted by softcap and temperature, relative to another logit of the row, for one SIMD
// target.
#pragma once

#include <cfloat>
#include <cmath>

#include "row_sums.h"
#include "row_terms.h"

namespace emp {

enum class Adjusting { kNot, kScaled, kCapped };

template <class S>
struct AdjustedLogits : RowKernel<S> {
  using Kernel = RowKernel<S>;
  using E = typename Kernel::E;
  using Kernel::kInf, Kernel::kNaN;
  using typename E::Constants, typename E::F;
  static constexpr int kWidth = S::kWidth;

  // exp(x) for x in [kNormal, 0] or NaN.
  [[gnu::always_inline]] static F exponential(const Constants& k, F x) {
    const F magic_k = S::madd(x, k.steps_per_nat, k.magic), steps = S::sub(magic_k, k.magic);
    const F r = S::fma(steps, k.minus_step, x);
    return S::mul(S::exp2_scaled(k.table, magic_k), Kernel::polynomial(k, r));
  }

  // tanh = whole + rest, where whole is 0 or +-1, so that near 1 the rest keeps its relative
  // accuracy. slope = 1 - tanh^2.
  struct Tanh {
    F whole, rest, slope;
  };
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

  // The adjustment of one row: a = scale * d for the difference d of two logits z or, with a
  // softcap, of two tanh(z / softcap). The scale is high + low as floats, without rounding.
  struct Row {
    double temperature, softcap, scale;
    F to_cap, high, low;

    Row(const Adjustment& adjustment, int64_t i)
        : temperature(adjustment.temperature_of(i)),
          softcap(adjustment.softcap),
          scale((softcap > 0 ? softcap : 1.0) / temperature) {
      const float first = float(scale);
      high = S::set(first);
      low = S::set(float(scale - double(first)));
      to_cap = S::set(softcap > 0 ? float(1 / softcap) : 0.0f);
    }
    bool capped() const { return softcap > 0; }
    Adjusting adjusting() const {
      if (capped()) return Adjusting::kCapped;
      return temperature == 1.0 ? Adjusting::kNot : Adjusting::kScaled;
    }
    double adjusted(double z) const {
      return (capped() ? softcap * std::tanh(z / softcap) : z) / temperature;
    }
    // d of two logits; without a softcap it does not cancel.
    double distance(double z, double from) const {
      return capped() ? std::tanh(z / softcap) - std::tanh(from / softcap) : z - from;
    }
    double slope(double z) const {
      const double tanh = capped() ? std::tanh(z / softcap) : 0.0;
      return (1 - tanh * tanh) / temperature;
    }
  };

  // d of a vector of logits, relative to one logit.
  template <bool kCapped>
  struct Distance {
    F whole, rest;  // without a softcap whole is the logit itself

    Distance(const Constants& k, const Row& row, float from) {
      const F z = S::set(from);
      if (kCapped) {
        const Tanh t = tanh(k, S::mul(z, row.to_cap));
        whole = t.whole, rest = t.rest;
      } else {
        whole = z, rest = S::set(0.0f);
      }
    }
    // Also the slope of tanh.
    [[gnu::always_inline]] F operator()(const Constants& k, const Row& row, F z, F& slope) const {
      if constexpr (kCapped) {
        const Tanh t = tanh(k, S::mul(z, row.to_cap));
        slope = t.slope;
        return S::add(S::sub(t.whole, whole), S::sub(t.rest, rest));
      } else {
        slope = k.one;
        return S::sub(z, whole);
      }
    }
  };
};

}  // namespace emp
