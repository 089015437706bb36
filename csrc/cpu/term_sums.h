// The sums over a row of adjusted logits for losses with options, for one SIMD target.
//
// As in sum_rows.h: a chunk's maximum first, then its exponentials relative to the running maximum
// and, in the same pass, the weighted sums of its distances.
#pragma once

#include <algorithm>
#include <cmath>

#include "adjusted_logits.h"
#include "columns.h"
#include "target_weights.h"

namespace emp {

template <class S>
struct TermSums : AdjustedLogits<S> {
  using Base = AdjustedLogits<S>;
  using Columns = emp::Columns<S>;
  using Weights = WeightsOfRow<S>;
  using E = typename Base::E;
  using Base::kInf, Base::kNaN, Base::kTinySum, Base::kWidth;
  using typename Base::Constants, typename Base::F, typename Base::Row;
  static constexpr int64_t kChunk = Columns::kChunk;

  // For distances d from the raw maximum m, with e = exp(scale * d) and without one maximal
  // element: u = sum e, t = sum e d.
  struct Found {
    float m = -kInf;
    double u = 0, t = 0;
    typename Weights::Dots dots;
  };
  struct Memory {
    typename Columns::Buffer z, p;
  };
  struct Chunk {
    const float* z;
    int64_t n;
    const char* next;  // the next columns
    int64_t size;      // bytes per element there
    typename Weights::Chunk weights;
  };
  struct Sums {
    F u, t;
    typename Weights::Sums weights;
    Sums() { u = t = S::set(0.0f); }
  };

  // Adds a chunk relative to m. With kLeaveOut the elements equal to m are left out of u and t, and
  // all but one of them count 1. kTiny: as E::Range::kTiny.
  template <Adjusting kAdjusting, Weighing kWeighing, bool kLeaveOut, bool kTiny>
  static void add_chunk(const Constants& k, const Row& row, const Weights& weights, const Chunk& c,
                        Found& all) {
    constexpr bool kCapped = kAdjusting == Adjusting::kCapped;
    const typename Base::template Distance<kCapped> distance(k, row, all.m);
    const float nats = kTiny ? 2 * E::kNormal : E::kNormal;
    const F m = S::set(all.m), zero = S::set(0.0f);
    const F floor = S::set(float(std::max(double(nats) / row.scale, -double(FLT_MAX))));
    int64_t left_out = 0;
    const auto step = [&](F z, auto is_there, F& d, Sums& s) __attribute__((always_inline)) {
      F slope;
      d = distance(k, row, z, slope);
      if (kCapped) d = S::sub(zero, S::max(zero, S::sub(zero, d)));  // rounding is not monotone
      const F near = S::max(floor, d);  // the floor also replaces -inf; a NaN is kept
      F x = near;
      if (kAdjusting != Adjusting::kNot) x = S::madd(near, row.high, S::mul(near, row.low));
      F e;
      if (kTiny) {
        e = S::mul(Base::exponential(k, S::mul(x, k.half)), S::set(0x1p40f));
        e = S::mul(e, e);
      } else {
        e = Base::exponential(k, x);
      }
      if (kLeaveOut) {
        const auto out = S::both(is_there, S::equal(z, m));
        left_out += S::count(out);
        e = S::zero_unless(S::not_equal(z, m), e);
      }
      e = S::zero_unless(is_there, e);
      s.u = S::add(s.u, e);
      s.t = S::madd(e, near, s.t);
    };
    Sums s0, s1;
    F d;
    int64_t i = 0;
    for (; i + 2 * kWidth <= c.n; i += 2 * kWidth) {
      __builtin_prefetch(c.next + i * c.size);
      if (c.weights.next != nullptr) __builtin_prefetch(c.weights.next + i * c.size);
      step(S::load(c.z + i), S::all(), d, s0);
      weights.template add<kWeighing>(d, c.weights, i, s0.weights);
      step(S::load(c.z + i + kWidth), S::all(), d, s1);
      weights.template add<kWeighing>(d, c.weights, i + kWidth, s1.weights);
    }
    for (; i < c.n; i += kWidth) {
      const int64_t count = std::min<int64_t>(kWidth, c.n - i);
      alignas(64) float z[kWidth], there[kWidth], w[kWidth], p[kWidth];
      for (int64_t j = 0; j < kWidth; ++j) {
        there[j] = j < count ? 1.0f : 0.0f;
        z[j] = j < count ? c.z[i + j] : 0.0f;
        w[j] = j < count && c.weights.w != nullptr ? c.weights.w[i + j] : 0.0f;
        p[j] = j < count && c.weights.p != nullptr ? c.weights.p[i + j] : 0.0f;
      }
      const auto is_there = S::not_equal(S::load(there), zero);
      step(S::load(z), is_there, d, s0);
      d = S::zero_unless(is_there, d);
      weights.template add<kWeighing>(d, {w, p, nullptr}, 0, s0.weights);
    }
    constexpr double kUnit = kTiny ? E::kTinyUnit : 1.0;
    all.u += double(S::reduce_add(S::add(s0.u, s1.u))) / kUnit;
    if (kLeaveOut) all.u += double(left_out - 1);
    all.t += double(S::reduce_add(S::add(s0.t, s1.t))) / kUnit;
    s0.weights += s1.weights;
    all.dots += weights.template dots<kWeighing>(s0.weights, c.n);
  }

  // add_chunk, with the template arguments chosen here.
  template <bool kTiny, Adjusting kAdjusting, Weighing kWeighing>
  static void add_chosen(const Constants& k, const Row& row, const Weights& weights, const Chunk& c,
                         bool leave_out, Found& all) {
    if (leave_out)
      add_chunk<kAdjusting, kWeighing, true, kTiny>(k, row, weights, c, all);
    else
      add_chunk<kAdjusting, kWeighing, false, kTiny>(k, row, weights, c, all);
  }
  template <bool kTiny, Adjusting kAdjusting>
  static void add(const Constants& k, const Row& row, const Weights& weights, const Chunk& c,
                  bool leave_out, Found& all) {
    if constexpr (!kTiny) {
      switch (weights.weighing) {
        case Weighing::kUniform:
          return add_chosen<kTiny, kAdjusting, Weighing::kUniform>(k, row, weights, c, leave_out,
                                                                   all);
        case Weighing::kClasses:
          return add_chosen<kTiny, kAdjusting, Weighing::kClasses>(k, row, weights, c, leave_out,
                                                                   all);
        case Weighing::kProbabilities:
          return add_chosen<kTiny, kAdjusting, Weighing::kProbabilities>(k, row, weights, c,
                                                                         leave_out, all);
        case Weighing::kBoth:
          return add_chosen<kTiny, kAdjusting, Weighing::kBoth>(k, row, weights, c, leave_out, all);
        case Weighing::kNone:
          break;
      }
    }
    add_chosen<kTiny, kAdjusting, Weighing::kNone>(k, row, weights, c, leave_out, all);
  }
  template <bool kTiny>
  static void add(const Constants& k, const Row& row, const Weights& weights, const Chunk& c,
                  bool leave_out, Found& all) {
    switch (row.adjusting()) {
      case Adjusting::kNot:
        return add<kTiny, Adjusting::kNot>(k, row, weights, c, leave_out, all);
      case Adjusting::kScaled:
        return add<kTiny, Adjusting::kScaled>(k, row, weights, c, leave_out, all);
      case Adjusting::kCapped:
        return add<kTiny, Adjusting::kCapped>(k, row, weights, c, leave_out, all);
    }
  }

  static bool has_nan(const float* z, int64_t n) {
    return std::any_of(z, z + n, [](float x) { return x != x; });
  }

  template <bool kTiny>
  static Found sum_chunks(const Constants& k, const Row& row, const void* z, LogitDtype dtype,
                          int64_t classes, const Weights& weights, Memory& memory) {
    const int64_t size = Columns::size_of(dtype);
    Found all, nowhere;  // for leading chunks that are all -inf
    bool first = true;
    for (int64_t start = 0; start < classes; start += kChunk) {
      const int64_t n = std::min(kChunk, classes - start);
      float highest;
      const float* x = Columns::floats(z, dtype, start, n, memory.z, highest);
      const char* const next = static_cast<const char*>(z) + (start + n) * size;
      const Chunk chunk{x, n, next, size, weights.chunk(start, n, memory.p)};
      if (!row.capped() && (highest == kInf || (first && highest == -kInf))) {
        const bool nan = has_nan(x, n);
        if (nan || highest == kInf) {
          all.m = highest, all.t = kNaN, all.u = nan ? kNaN : 0;
          return all;
        }
        nowhere.m = 0;
        add<kTiny>(k, row, weights, chunk, false, nowhere);
        continue;
      }
      const bool grows = first || highest > all.m;
      if (grows && !first) {  // rescale the sums to the new maximum and add the old one
        const double delta = -std::fabs(row.distance(double(highest), double(all.m)));
        const double f = std::exp(row.scale * delta);
        all.t = f * (all.t + delta * (all.u + 1));
        all.u = f * (all.u + 1);
        all.dots.move(delta);
      }
      if (grows) all.m = highest;
      add<kTiny>(k, row, weights, chunk, grows, all);
      first = false;
    }
    all.dots += nowhere.dots;
    return all;
  }
  static Found sum_row(const Constants& k, const Row& row, const void* z, LogitDtype dtype,
                       int64_t classes, const Weights& weights, Memory& memory) {
    Found found = sum_chunks<false>(k, row, z, dtype, classes, weights, memory);
    if (!(found.u < kTinySum * double(classes))) return found;
    const Found tiny = sum_chunks<true>(k, row, z, dtype, classes, Weights(), memory);
    found.u = tiny.u, found.t = tiny.t;
    return found;
  }
};

}  // namespace emp
