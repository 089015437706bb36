// Sums of the exponentials of a run of logits, for any SIMD target: the reference that they are
// relative to, their range below it, and the sums.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emp {

template <class S>
struct Exponentials {
  using F = typename S::F;
  using M = typename S::M;

  static constexpr int64_t kPair = 2 * S::kWidth;
  static constexpr int64_t kChunkBytes = 4096;

  // 1.5 * 2^23: adding it rounds a float to an integer in the low mantissa bits.
  static constexpr float kMagic = 12582912.0f;
  static constexpr int kSteps = 1 << S::kTableBits;
  static constexpr bool kCubic = S::kTableBits < 5;
  static constexpr double kLog2 = 0.693147180559945309417, kLog4 = 2 * kLog2;
  // exp(d) is a normal float for d >= this. Smaller contributions matter only for rows whose u is
  // that small, which are summed again with Range::kTiny.
  static constexpr float kNormal = -87.0f;
  static constexpr float kVanish = -104.0f;  // exp(d) rounds to 0 below
  // Range::kTiny sums exp(z - m) * kTinyUnit, so that no term or sum is subnormal.
  static constexpr double kTinyUnit = 0x1p80;

  // exp(d) = 2^(k / kSteps) * (1 + c1 r + c2 r^2 [+ c3 r^3]), |r| <= h = log(2) / (2 kSteps).
  // The constant term is exactly 1, so that elements equal to the maximum count exactly 1; the
  // other coefficients distribute the first neglected term evenly over [-h, h] (relative error 6e-8
  // with 32 entries, 3e-8 with 8).
  struct Constants {
    typename S::Exp2Table table;
    F steps_per_nat, magic, minus_step, minus_step_low, c1, c2, c3, one, half, normal;
    typename S::Exp4 exp4;  // if S::kHasExp4
    F log4e, lowest_power;

    Constants() {
      int32_t entries[kSteps];
      for (int j = 0; j < kSteps; ++j) {
        const float x = float(std::exp2(double(j) / kSteps));
        std::memcpy(&entries[j], &x, 4);
        entries[j] -= j << (23 - S::kTableBits);
      }
      const double h = kLog2 / (2 * kSteps);
      table = S::load_table(entries);
      steps_per_nat = S::set(float(kSteps / kLog2));
      magic = S::set(kMagic);
      minus_step = S::set(-float(kLog2) / kSteps);
      minus_step_low = S::set(float((float(kLog2) - kLog2) / kSteps));
      c1 = S::set(float(kCubic ? 1.0 : 1.0 + h * h / 8));
      c2 = S::set(float(kCubic ? 0.5 + 0.8284 * h * h / 24 : 0.5));
      c3 = S::set(float(1.0 / 6));
      one = S::set(1.0f);
      half = S::set(0.5f);
      normal = S::set(kNormal);
      log4e = S::set(float(1 / kLog4));
      lowest_power = S::set(-62.5f);
    }
  };

  static F polynomial(const Constants& k, F r) {
    return kCubic ? S::madd(r, S::madd(r, S::madd(r, k.c3, k.c2), k.c1), k.one)
                  : S::madd(r, S::madd(r, k.c2, k.c1), k.one);
  }

  // The reference of the exponentials: m itself, or the step k_m nearest to m, so that z - m is
  // never rounded: exp(z - m) = scale * 2^((k - k_m) / kSteps) * polynomial(z - k log(2) / kSteps).
  enum class Against {
    kMaximum,
    kStep,      // |m| <= kStepLimit keeps k_m exact
    kNearStep,  // |m| <= kNearLimit: log(2) as one float is within 1 ulp for the z that matter
    kPowers,    // m itself, in powers of four: see add_powers
  };
  static constexpr float kStepLimit = 8192.0f, kNearLimit = 8.0f;  // kPowers: as kStep

  struct Reference {
    F m, magic, scale, floor;  // z below the floor counts as the floor, which is negligible
    F minus_power, residue;    // for kPowers: -m log4(e), and its rounding error

    Reference(const Constants& k, F maximum, Against against)
        : m(maximum), magic(k.magic), scale(k.one), floor(k.normal) {
      minus_power = S::sub(S::set(0.0f), S::mul(m, k.log4e));
      residue = S::fma(m, k.log4e, minus_power);
      if (against == Against::kPowers) scale = S::fma(residue, S::set(-float(kLog4)), k.one);
      if (against == Against::kMaximum || against == Against::kPowers) return;
      floor = S::add(m, k.normal);
      const F k_m = S::sub(S::madd(m, k.steps_per_nat, k.magic), k.magic);
      const F past = S::madd(k_m, k.minus_step_low, S::fma(k_m, k.minus_step, m));
      magic = S::sub(k.magic, k_m);
      scale = polynomial(k, S::sub(S::set(0.0f), past));
    }
  };

  struct Sums {
    F u, t, q;
    Sums() { u = t = q = S::set(0.0f); }
    Sums& operator+=(const Sums& other) {
      u = S::add(u, other.u);
      t = S::add(t, other.t);
      q = S::add(q, other.q);
      return *this;
    }
  };

  // The range of exponents in a run of elements.
  enum class Range {
    kNormal,  // every z - m >= kNormal
    kAny,     // contributions below exp(kNormal) count as exp(kNormal)
    kTiny,    // contributions down to the smallest subnormal: exp(d) = exp(d / 2)^2
  };

  // Adds exp(z - m) / scale of one vector; with kLeaveOut to u and q only where `use` (the other
  // elements equal m and add 0 to t). With Range::kTiny the exponent is halved and the exponential
  // squared; t is halved too. Always inlined, like add_powers: a call per vector would spill sums
  // and constants.
  template <Range kRange, bool kLeaveOut, Against kAgainst, bool kSquares>
  [[gnu::always_inline]] static void add_vector(const Constants& k, F z, const Reference& at, M use,
                                                Sums& s) {
    if (kRange == Range::kTiny) z = S::mul(z, k.half);
    constexpr bool kToMaximum = kAgainst == Against::kMaximum;
    // The floor also replaces -inf, as 0 * -inf would be NaN. A NaN is kept.
    if (!kToMaximum && kRange != Range::kNormal) z = S::max(at.floor, z);
    F d = S::sub(z, at.m);
    if (kToMaximum && kRange != Range::kNormal) d = S::max(at.floor, d);
    const F x = kToMaximum ? d : z;
    const F magic_k = S::madd(x, k.steps_per_nat, at.magic), steps = S::sub(magic_k, at.magic);
    F r = S::fma(steps, k.minus_step, x);
    if (kAgainst == Against::kStep) r = S::madd(steps, k.minus_step_low, r);
    F e = S::mul(S::exp2_scaled(k.table, magic_k), polynomial(k, r));
    if (kRange == Range::kTiny) {
      e = S::mul(e, S::set(0x1p40f));  // square root of kTinyUnit
      e = S::mul(e, e);
    }
    if (kLeaveOut) e = S::zero_unless(use, e);
    s.u = S::add(s.u, e);
    s.t = S::madd(e, d, s.t);
    if (kSquares && kRange != Range::kTiny) s.q = S::madd(e, e, s.q);  // negligible for a tiny u
  }

  // Adds 4^y, y = (z - m) log4(e), of one vector with every z - m >= kNormal, where `use`. It takes
  // fewer operations than add_vector, but y has a rounding error of 2^-25 |y|, acceptable for
  // 16-bit logits, and elements equal to the maximum count 1 within 2e-7. t is in units of log(4).
  template <Range kRange, bool kLeaveOut, bool kSquares>
  [[gnu::always_inline]] static void add_powers(const Constants& k, F z, const Reference& at, M use,
                                                Sums& s) {
    F y = S::fma(z, k.log4e, at.minus_power);
    if (kRange != Range::kNormal) y = S::max(k.lowest_power, y);
    const F e = k.exp4(y);
    if constexpr (kLeaveOut) {
      s.u = S::add_where(use, s.u, e);
      s.t = S::fma_where(use, e, y, s.t);
      if (kSquares) s.q = S::fma_where(use, e, e, s.q);
    } else {
      s.u = S::add(s.u, e);
      s.t = S::fma(e, y, s.t);
      if (kSquares) s.q = S::fma(e, e, s.q);
    }
  }

  // Adds n elements relative to the running maximum. With kLeaveOut the elements equal to it are
  // left out, and their number is returned.
  template <Range kRange, bool kLeaveOut, Against kAgainst, bool kSquares, class T>
  static int64_t add_run(const Constants& k, const T* z, int64_t n, float maximum, Sums& sums) {
    constexpr int64_t kAhead = kChunkBytes / sizeof(T);  // the next chunk or row
    constexpr Range kFilled = kRange == Range::kTiny ? Range::kTiny : Range::kAny;
    const F m = S::set(maximum);
    const Reference at(k, kRange == Range::kTiny ? S::mul(m, k.half) : m, kAgainst);
    Sums s0, s1, s2, s3;
    int64_t left_out = 0;
    const auto used = [&](F x) __attribute__((always_inline)) {
      if (!kLeaveOut) return S::all();
      const M use = S::not_equal(x, m);
      left_out += S::kWidth - S::count(use);
      return use;
    };
    const auto add = [&](F x, Sums& s) __attribute__((always_inline)) {
      if constexpr (kAgainst == Against::kPowers)
        add_powers<kRange, kLeaveOut, kSquares>(k, x, at, used(x), s);
      else
        add_vector<kRange, kLeaveOut, kAgainst, kSquares>(k, x, at, used(x), s);
    };
    const auto add_filled = [&](F x, Sums& s) __attribute__((always_inline)) {
      if constexpr (kAgainst == Against::kPowers)
        add_powers<kFilled, kLeaveOut, kSquares>(k, x, at, used(x), s);
      else
        add_vector<kFilled, kLeaveOut, kAgainst, kSquares>(k, x, at, used(x), s);
    };
    constexpr int64_t kStride = 2 * kPair;
    const auto prefetch = [&](int64_t from) __attribute__((always_inline)) {
      for (int64_t line = 0; line < kStride * int64_t(sizeof(T)); line += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(z + from + kAhead) + line);
    };
    int64_t i = 0;
    F a, b;
    for (; i + kStride <= n; i += kStride) {
      prefetch(i);
      S::load2(z + i, a, b);
      add(a, s0);
      add(b, s1);
      S::load2(z + i + kPair, a, b);
      add(a, s2);
      add(b, s3);
    }
    prefetch(i);
    for (; i + kPair <= n; i += kPair) {
      S::load2(z + i, a, b);
      add(a, s0);
      add(b, s1);
    }
    if (i < n) {  // padded with -inf, which adds a negligible amount
      S::load2_first(z + i, int(n - i), a, b);
      add_filled(a, s2);
      if (n - i > S::kWidth || sizeof(T) == 2) add_filled(b, s3);  // 16-bit pairs are interleaved
    }
    s0 += s1;
    s2 += s3;
    s0 += s2;
    sums = finished<kRange, kAgainst, kSquares>(s0, at);
    return left_out;
  }

  // Converts to sums relative to m itself, with t in nats and not halved.
  template <Range kRange, Against kAgainst, bool kSquares>
  static Sums finished(Sums s, const Reference& at) {
    F scale = at.scale;
    if (kAgainst == Against::kPowers) {  // corrects y by the residue
      const F log4 = S::set(float(kLog4)), excess = S::mul(at.residue, s.u);
      s.t = S::mul(S::sub(s.t, excess), log4);
    }
    if (kRange == Range::kTiny) {
      scale = S::mul(scale, scale);
      s.t = S::add(s.t, s.t);
    }
    s.u = S::mul(s.u, scale);
    s.t = S::mul(s.t, scale);
    if (kSquares) s.q = S::mul(s.q, S::mul(scale, scale));
    return s;
  }

  // For 16-bit logits z - m is exact where it matters, and for float32 ones beyond kStepLimit.
  template <Range kRange, bool kLeaveOut, bool kSquares, class T>
  static int64_t add(const Constants& k, const T* z, int64_t n, float m, Sums& s) {
    if constexpr (sizeof(T) == 4) {
      if (std::fabs(m) <= kNearLimit)
        return add_run<kRange, kLeaveOut, Against::kNearStep, kSquares>(k, z, n, m, s);
      if (std::fabs(m) <= kStepLimit)
        return add_run<kRange, kLeaveOut, Against::kStep, kSquares>(k, z, n, m, s);
    } else if constexpr (kRange == Range::kNormal && S::kHasExp4) {
      if (std::fabs(m) <= kStepLimit)
        return add_run<kRange, kLeaveOut, Against::kPowers, kSquares>(k, z, n, m, s);
    }
    return add_run<kRange, kLeaveOut, Against::kMaximum, kSquares>(k, z, n, m, s);
  }
};

}  // namespace emp
