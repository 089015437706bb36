// One pass over rows of logits: maximum and exponential sums, for any SIMD target.
//
// A row is taken in chunks that fit the first-level cache: a chunk's maximum first (this is the
// read from memory), then its exponentials against the running maximum. One maximal element is
// left out of every sum, so that u = sum(exp(z - m)) - 1 keeps its relative accuracy when the row
// is confident and u is tiny. Rows of few classes are taken kWidth at a time, a lane each.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "dtypes.h"

namespace emp {

// m = max z; over all elements but one maximal one, with e = exp(z - m): u = sum e,
// t = sum e * (z - m), q = sum e^2. A NaN among the logits makes u NaN; m is -inf for a row
// without a logit above -inf, and u is then 0.
struct RowSums {
  float m, u, t, q;
};

// The sums of kRows rows, a field each.
template <int kRows>
struct RowSumsOf {
  alignas(64) float m[kRows] = {}, u[kRows] = {}, t[kRows] = {}, q[kRows] = {};

  void set(int i, const RowSums& sums) {
    m[i] = sums.m;
    u[i] = sums.u;
    t[i] = sums.t;
    q[i] = sums.q;
  }
  RowSums of(int i) const { return {m[i], u[i], t[i], q[i]}; }
};

template <class S>
struct RowKernel {
  using F = typename S::F;
  using M = typename S::M;
  static constexpr int64_t kPair = 2 * S::kWidth;
  static constexpr int64_t kChunk = 1024;
  static constexpr int64_t kFewClasses = 48;  // up to here a lane a row beats a vector a row

  static constexpr float kInf = std::numeric_limits<float>::infinity();
  static constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  // 1.5 * 2^23: adding it rounds a float to an integer that stands in the low mantissa bits.
  static constexpr float kMagic = 12582912.0f;
  static constexpr int kSteps = 1 << S::kTableBits;
  static constexpr bool kCubic = S::kTableBits < 5;
  static constexpr double kLog2 = 0.693147180559945309417;
  // exp(d) is a normal float from here on. Smaller contributions matter only to rows whose u is
  // itself that small, which are summed again with Range::kTiny.
  static constexpr float kNormal = -87.0f;
  static constexpr float kVanish = -104.0f;  // exp(d) rounds to 0 below
  // Range::kTiny sums exp(z - m) * kTinyUnit, so that no term or sum is a denormal.
  static constexpr double kTinyUnit = 0x1p80;
  static constexpr double kTinySum = 1e-30;  // per element: what is left out is below 1e-7 of it

  // exp(d) = 2^(k / kSteps) * (1 + c1 r + c2 r^2 [+ c3 r^3]), |r| <= h = log(2) / (2 kSteps).
  // The constant term is exactly 1, so that elements equal to the maximum count exactly 1; the
  // other coefficients spread the first neglected term evenly over [-h, h] (relative error
  // 6e-8 with 32 entries, 3e-8 with 8).
  struct Constants {
    typename S::Exp2Table table;
    F steps_per_nat, magic, minus_step, minus_step_low, c1, c2, c3, one, half, normal;
    typename S::Exp2 exp2;  // where S::kHasExp2
    F log2e, lowest_power;

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
      log2e = S::set(float(1 / kLog2));
      lowest_power = S::set(-125.0f);
    }
  };

  static F polynomial(const Constants& k, F r) {
    return kCubic ? S::fma(r, S::fma(r, S::fma(r, k.c3, k.c2), k.c1), k.one)
                  : S::fma(r, S::fma(r, k.c2, k.c1), k.one);
  }

  // What exponentials are taken against: m itself, or the whole step k_m next to m, so that no
  // rounding of z - m enters:
  //   exp(z - m) = scale * 2^((k - k_m) / kSteps) * polynomial(z - k log(2) / kSteps).
  enum class Against {
    kMaximum,
    kStep,      // |m| <= kStepLimit keeps k_m exact
    kNearStep,  // |m| <= kNearLimit: log(2) as one float is within 1 ulp for the z that matter
    kPowers,    // m itself, in powers of two: see add_powers
  };
  static constexpr float kStepLimit = 8192.0f, kNearLimit = 8.0f;  // kPowers: as kStep

  struct Reference {
    F m, magic, scale, floor;  // z below the floor counts as the floor, which is next to nothing
    F minus_power, residue;    // for kPowers: -m log2(e), and what it lost by rounding

    Reference(const Constants& k, F maximum, Against against)
        : m(maximum), magic(k.magic), scale(k.one), floor(k.normal) {
      minus_power = S::sub(S::set(0.0f), S::mul(m, k.log2e));
      residue = S::fma(m, k.log2e, minus_power);
      if (against == Against::kPowers) scale = S::fma(residue, S::set(-float(kLog2)), k.one);
      if (against == Against::kMaximum || against == Against::kPowers) return;
      floor = S::add(m, k.normal);
      const F k_m = S::sub(S::fma(m, k.steps_per_nat, k.magic), k.magic);
      const F past = S::fma(k_m, k.minus_step_low, S::fma(k_m, k.minus_step, m));
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

  // Which exponentials a run of elements needs.
  enum class Range {
    kNormal,  // every z - m >= kNormal
    kAny,     // contributions below exp(kNormal) count as that
    kTiny,    // contributions down to the smallest denormal: exp(d) = exp(d / 2)^2
  };

  // Adds exp(z - m) / scale of one vector, to u and q only where `use` (looked at with kLeaveOut);
  // elements that are not in use equal m, and t gains nothing from them. With Range::kTiny
  // everything is halved before and squared behind the exponential; t is halved too.
  template <Range kRange, bool kLeaveOut, Against kAgainst, bool kSquares>
  static void add_vector(const Constants& k, F z, const Reference& at, M use, Sums& s) {
    if (kRange == Range::kTiny) z = S::mul(z, k.half);
    constexpr bool kToMaximum = kAgainst == Against::kMaximum;
    // The floor also keeps -inf out, whose 0 * -inf would be NaN. A NaN stays one.
    if (!kToMaximum && kRange != Range::kNormal) z = S::max(at.floor, z);
    F d = S::sub(z, at.m);
    if (kToMaximum && kRange != Range::kNormal) d = S::max(at.floor, d);
    const F x = kToMaximum ? d : z;
    const F magic_k = S::fma(x, k.steps_per_nat, at.magic), steps = S::sub(magic_k, at.magic);
    F r = S::fma(steps, k.minus_step, x);
    if (kAgainst == Against::kStep) r = S::fma(steps, k.minus_step_low, r);
    F e = S::mul(S::exp2_scaled(k.table, magic_k), polynomial(k, r));
    if (kRange == Range::kTiny) {
      e = S::mul(e, S::set(0x1p40f));  // the root of kTinyUnit
      e = S::mul(e, e);
    }
    if (kLeaveOut) e = S::zero_unless(use, e);
    s.u = S::add(s.u, e);
    s.t = S::fma(e, d, s.t);
    if (kSquares && kRange != Range::kTiny) s.q = S::fma(e, e, s.q);  // of a tiny u: nothing
  }

  // Adds 2^y, y = (z - m) log2(e), of one vector with every z - m >= kNormal. Two operations less
  // than add_vector, but y rounds by 2^-25 |y|: for 16-bit logits, and not for a row's largest. t
  // gains in units of log(2).
  template <Range kRange, bool kSquares>
  static void add_powers(const Constants& k, F z, const Reference& at, Sums& s) {
    F y = S::fma(z, k.log2e, at.minus_power);
    if (kRange != Range::kNormal) y = S::max(k.lowest_power, y);
    const F e = k.exp2(y);
    s.u = S::add(s.u, e);
    s.t = S::fma(e, y, s.t);
    if (kSquares) s.q = S::fma(e, e, s.q);
  }

  // Adds n elements against their maximum so far. With kLeaveOut the elements equal to it are left
  // out, and their number is returned.
  template <Range kRange, bool kLeaveOut, Against kAgainst, bool kSquares, class T>
  static int64_t add_run(const Constants& k, const T* z, int64_t n, float maximum, Sums& sums) {
    constexpr int64_t kAhead = kChunk;  // the next chunk, or the row that follows
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
        add_powers<kRange, kSquares>(k, x, at, s);
      else
        add_vector<kRange, kLeaveOut, kAgainst, kSquares>(k, x, at, used(x), s);
    };
    const auto add_filled = [&](F x, Sums& s) __attribute__((always_inline)) {
      if constexpr (kAgainst == Against::kPowers)
        add_powers<kFilled, kSquares>(k, x, at, s);
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
    if (i < n) {  // the filling is -inf: next to nothing
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

  // Sums against m itself, t in nats and not halved.
  template <Range kRange, Against kAgainst, bool kSquares>
  static Sums finished(Sums s, const Reference& at) {
    F scale = at.scale;
    if (kAgainst == Against::kPowers) {  // y was too large by the residue
      const F log2 = S::set(float(kLog2)), excess = S::mul(at.residue, s.u);
      s.t = S::mul(S::sub(s.t, excess), log2);
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

  // Of 16-bit logits z - m is exact wherever it matters, of float32 ones so it is behind
  // kStepLimit.
  template <Range kRange, bool kLeaveOut, bool kSquares, class T>
  static int64_t add(const Constants& k, const T* z, int64_t n, float m, Sums& s) {
    if constexpr (sizeof(T) == 4) {
      if (std::fabs(m) <= kNearLimit)
        return add_run<kRange, kLeaveOut, Against::kNearStep, kSquares>(k, z, n, m, s);
      if (std::fabs(m) <= kStepLimit)
        return add_run<kRange, kLeaveOut, Against::kStep, kSquares>(k, z, n, m, s);
    } else if constexpr (kRange == Range::kNormal && S::kHasExp2) {
      if (std::fabs(m) <= kStepLimit)
        return add_run<kRange, kLeaveOut, Against::kPowers, kSquares>(k, z, n, m, s);
    }
    return add_run<kRange, kLeaveOut, Against::kMaximum, kSquares>(k, z, n, m, s);
  }

  // Bounds of some elements; a NaN may or may not show in them.
  struct Bounds {
    float lowest, highest;
  };

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
  // `lowest` would cost more than it saves here.
  static Bounds bounds(const float* z, int64_t n) { return {-kInf, highest_of(z, n)}; }
  // Sign-magnitude bits compare like signed integers unless both are negative: the signed maximum
  // is the highest element if that is not negative, the unsigned one the lowest if that is.
  template <class T>
  static Bounds bounds(const T* z, int64_t n) {
    const uint16_t first = z[0].bits;
    auto high = S::load_bits_first(z, 0, first), low = high;
    int64_t i = 0;
    for (; i + kPair <= n; i += kPair) {
      const auto x = S::load_bits(z + i);
      high = S::max_signed(high, x);
      low = S::max_unsigned(low, x);
    }
    if (i < n) {
      const auto x = S::load_bits_first(z + i, int(n - i), first);
      high = S::max_signed(high, x);
      low = S::max_unsigned(low, x);
    }
    const int16_t highest = S::reduce_max_signed(high);
    const uint16_t lowest = S::reduce_max_unsigned(low);
    return {lowest & 0x8000u ? to_float(T{lowest}) : 0.0f,
            highest >= 0 ? to_float(T{uint16_t(highest)}) : highest_of(z, n)};
  }

  template <class T>
  static bool has_nan(const T* z, int64_t n) {
    bool found = false;
    for_each_vector(z, n, [&](int64_t, F x) {
      found = S::any_nan(x);
      return !found;
    });
    return found;
  }
  // Lowest index of `value` among n elements, n where it is absent.
  template <class T>
  static int64_t find(const T* z, int64_t n, float value) {
    const F v = S::set(value);
    int64_t i = n;
    for_each_vector(z, n, [&](int64_t pair, F x) {
      if (!S::any_equal(x, v)) return true;
      i = pair;
      return false;
    });
    while (i < n && to_float(z[i]) != value) ++i;
    return i;
  }
  // Calls f(index of its pair, vector), -inf behind the end, until it returns false.
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

  template <bool kTiny, bool kSquares, class T>
  static RowSums sums(const Constants& k, const T* row, int64_t classes) {
    constexpr Range kRange = kTiny ? Range::kTiny : Range::kAny;
    constexpr double kUnit = kTiny ? kTinyUnit : 1.0;  // what exp(0) counts
    constexpr float kFloor = kTiny ? 2 * kNormal : kVanish;
    float m = -kInf;
    double u = 0, t = 0, q = 0;
    for (int64_t start = 0; start < classes; start += kChunk) {
      const T* z = row + start;
      const int64_t n = std::min(kChunk, classes - start);
      const Bounds range = bounds(z, n);
      Sums s;
      double ties = 0;  // elements equal to the maximum, besides the one left out
      if (range.highest > m) {
        if (range.highest == kInf) return {kInf, has_nan(row, classes) ? kNaN : 0.0f, kNaN, kNaN};
        if (m > -kInf) {  // the old maximum joins the sums, and these move to the new one
          const double delta = double(m) - double(range.highest), f = std::exp(delta);
          t = f * (t + delta * (u + kUnit));
          u = f * (u + kUnit);
          q = f * f * (q + 1);
        }
        m = range.highest;
        ties = double(add<kRange, true, kSquares>(k, z, n, m, s) - 1);
      } else if (m == -kInf || !(range.highest >= m + kFloor)) {  // only a NaN can matter here
        if (has_nan(z, n)) return {m, kNaN, kNaN, kNaN};
        continue;
      } else if (!kTiny && range.lowest >= m + kNormal) {
        add<Range::kNormal, false, kSquares>(k, z, n, m, s);
      } else {
        add<kRange, false, kSquares>(k, z, n, m, s);
      }
      u += S::reduce_add(s.u) + ties * kUnit;
      t += S::reduce_add(s.t);
      if (kSquares) q += S::reduce_add(s.q) + ties;
    }
    return {m, float(u / kUnit), float(t / kUnit), float(q)};
  }

  template <bool kSquares, class T>
  static RowSums row_sums(const Constants& k, const T* row, int64_t classes) {
    const RowSums s = sums<false, kSquares>(k, row, classes);
    if (s.u < kTinySum * double(classes)) return sums<true, kSquares>(k, row, classes);
    return s;
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

  // Sums of kWidth rows of at most kFewClasses classes, a lane each, written from position `first`
  // of the results on: rows[lane] points to row `lane`, and the same row may stand there twice.
  template <bool kSquares, class T, int kRows>
  static void few_class_sums(const Constants& k, const T* const* rows, int64_t classes, int first,
                             RowSumsOf<kRows>& results) {
    alignas(64) float columns[kFewClasses][S::kWidth];
    columns_of(rows, classes, columns);
    F m = S::set(-kInf), nan = S::set(0.0f);
    for (int64_t c = 0; c < classes; ++c) {
      const F z = S::load(columns[c]);
      m = S::max(m, z);
      nan = S::add(nan, z);  // NaN where a logit is, or for +inf and -inf together
    }
    const Reference at(k, m, Against::kStep);
    Sums s;
    M left_out = S::none();
    for (int64_t c = 0; c < classes; ++c) {
      const F z = S::load(columns[c]);
      // The first maximal element of each lane is left out.
      const M use = S::either(left_out, S::not_equal(z, m));
      left_out = S::either(left_out, S::equal(z, m));
      add_vector<Range::kAny, true, Against::kStep, kSquares>(k, z, at, use, s);
    }
    s = finished<Range::kAny, Against::kStep, kSquares>(s, at);
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
        results.set(first + lane, row_sums<kSquares>(k, rows[lane], classes));
  }
};

}  // namespace emp
