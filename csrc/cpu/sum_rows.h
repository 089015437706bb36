// The sums of one row in one pass, for one SIMD target: the body of row_sums_<target>.cpp.
#pragma once

#include <algorithm>
#include <cmath>

#include "row_sums.h"

namespace emp {

template <class S>
struct LongRows : RowKernel<S> {
  using Kernel = RowKernel<S>;
  using E = typename Kernel::E;
  using E::kChunkBytes, E::kNormal, E::kPair, E::kTinyUnit, E::kVanish;
  using Kernel::kInf, Kernel::kNaN, Kernel::kTinySum;
  using typename E::Constants, typename E::F, typename E::Range, typename E::Sums;

  // Bounds of some elements; a NaN may or may not propagate.
  struct Bounds {
    float lowest, highest;
  };

  // `lowest` would cost more than it saves here.
  static Bounds bounds(const float* z, int64_t n) { return {-kInf, Kernel::highest_of(z, n)}; }
  // Sign-magnitude bits compare like signed integers unless both are negative: the signed maximum
  // is the highest element if it is not negative, the unsigned one is the lowest element if that is
  // negative.
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
            highest >= 0 ? to_float(T{uint16_t(highest)}) : Kernel::highest_of(z, n)};
  }

  template <class T>
  static bool has_nan(const T* z, int64_t n) {
    bool found = false;
    Kernel::for_each_vector(z, n, [&](int64_t, F x) {
      found = S::any_nan(x);
      return !found;
    });
    return found;
  }

  template <bool kTiny, bool kStatistics, class T>
  static RowSums sums(const Constants& k, const T* row, int64_t classes, int64_t* top) {
    constexpr Range kRange = kTiny ? Range::kTiny : Range::kAny;
    constexpr double kUnit = kTiny ? kTinyUnit : 1.0;  // the value of exp(0)
    constexpr float kFloor = kTiny ? 2 * kNormal : kVanish;
    float m = -kInf;
    int64_t top_chunk = 0;  // start of the first chunk with the maximum
    double u = 0, t = 0, q = 0;
    constexpr int64_t kChunk = kChunkBytes / sizeof(T);
    constexpr bool kSeesLowest = !kTiny && sizeof(T) == 2;
    for (int64_t start = 0; start < classes; start += kChunk) {
      const T* z = row + start;
      const int64_t n = std::min(kChunk, classes - start);
      const Bounds range = bounds(z, n);
      Sums s;
      double ties = 0;  // elements equal to the maximum, except the one left out
      if (range.highest > m) {
        if (range.highest == kInf) return {kInf, has_nan(row, classes) ? kNaN : 0.0f, kNaN, kNaN};
        if (m > -kInf) {  // add the old maximum to the sums and rescale them to the new one
          const double delta = double(m) - double(range.highest), f = std::exp(delta);
          t = f * (t + delta * (u + kUnit));
          u = f * (u + kUnit);
          q = f * f * (q + 1);
        }
        m = range.highest;
        top_chunk = start;
        const int64_t left_out =
            kSeesLowest && range.lowest >= m + kNormal
                ? E::template add<Range::kNormal, true, kStatistics>(k, z, n, m, s)
                : E::template add<kRange, true, kStatistics>(k, z, n, m, s);
        ties = double(left_out - 1);
      } else if (m == -kInf || !(range.highest >= m + kFloor)) {  // only a NaN can change the sums
        if (has_nan(z, n)) return {m, kNaN, kNaN, kNaN};
        continue;
      } else if (kSeesLowest && range.lowest >= m + kNormal) {
        E::template add<Range::kNormal, false, kStatistics>(k, z, n, m, s);
      } else {
        E::template add<kRange, false, kStatistics>(k, z, n, m, s);
      }
      u += S::reduce_add(s.u) + ties * kUnit;
      t += S::reduce_add(s.t);
      if (kStatistics) q += S::reduce_add(s.q) + ties;
    }
    if (kStatistics) {  // only this chunk is read again, from a cache
      const T* z = row + top_chunk;
      *top = top_chunk + Kernel::find(z, std::min(kChunk, classes - top_chunk), m);
    }
    return {m, float(u / kUnit), float(t / kUnit), float(q)};
  }
};

template <class S, class T, bool kStatistics>
RowSums RowSummer<S, T, kStatistics>::row_sums(const typename Exponentials<S>::Constants& k,
                                               const T* row, int64_t classes, int64_t* top) {
  using Rows = LongRows<S>;
  if (kStatistics) *top = 0;
  const RowSums s = Rows::template sums<false, kStatistics>(k, row, classes, top);
  if (s.u < Rows::kTinySum * double(classes))
    return Rows::template sums<true, kStatistics>(k, row, classes, top);
  return s;
}

}  // namespace emp
