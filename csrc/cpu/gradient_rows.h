// Rows [begin, end) of a cross-entropy gradient, for one SIMD target: the body of
// cross_entropy_<target>.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cross_entropy.h"
#include "row_sums.h"

namespace emp {

template <class S>
struct RowGradient {
  using F = typename S::F;
  using Kernel = RowKernel<S>;
  using Constants = typename Kernel::Constants;
  static constexpr int64_t kPair = Kernel::kPair;
  // Beyond this the rounding of a float32 lse makes exp(z - lse) inaccurate: the row's maximum and
  // sum are recomputed first, while it is in the cache.
  static constexpr float kSharpLse = 32.0f;

  // softmax(z)_j = exp((z_j - m) - log_sum).
  struct Normaliser {
    float m, log_sum;
  };

  template <class T>
  static Normaliser normaliser(const Constants& k, const T* z, int64_t classes,
                               const RowGradients& gradients, int64_t i) {
    const float lse = gradients.lse[i];
    if (gradients.maximum != nullptr) {
      const float m = gradients.maximum[i];
      return {std::isfinite(m) ? m : Kernel::kNaN, lse};
    }
    if (std::fabs(lse) <= kSharpLse) return {lse, 0.0f};
    const RowSums sums = Kernel::template row_sums<false>(k, z, classes);
    // A row with a logit of +inf, or with none above -inf, has no softmax.
    return {std::isfinite(sums.m) ? sums.m : Kernel::kNaN, float(std::log1p(double(sums.u)))};
  }

  struct Row {
    F m, log_sum, scale;
  };

  // scale * exp((z - m) - log_sum), and 0 below exp(kNormal).
  [[gnu::always_inline]] static F scaled_softmax(const Constants& k, const Row& row, F z) {
    const F d = S::sub(S::sub(z, row.m), row.log_sum);
    const F magic_k = S::madd(d, k.steps_per_nat, k.magic), steps = S::sub(magic_k, k.magic);
    const F r = S::madd(steps, k.minus_step_low, S::fma(steps, k.minus_step, d));
    const F e = S::mul(S::exp2_scaled(k.table, magic_k), Kernel::polynomial(k, r));
    return S::mul(S::zero_unless(S::not_less(d, k.normal), e), row.scale);
  }

  template <class T>
  static void few(const Constants& k, const Row& row, const T* z, int n, T* out) {
    F a, b;
    S::load2_first(z, n, a, b);
    S::store2_first(out, n, scaled_softmax(k, row, a), scaled_softmax(k, row, b));
  }

  template <bool kStream, class T>
  static void write_row(const Constants& k, const Row& row, const T* z, int64_t n, T* out) {
    int64_t i = 0;
    if (kStream) {  // up to the first cache line boundary
      const int64_t past = int64_t(reinterpret_cast<uintptr_t>(out) % 64 / sizeof(T));
      const int64_t head = past == 0 ? 0 : 64 / int64_t(sizeof(T)) - past;
      for (int64_t count; i < std::min(head, n); i += count) {
        count = std::min({kPair - 1, head - i, n - i});
        few(k, row, z + i, int(count), out + i);
      }
    }
    const auto step = [&](int64_t at) __attribute__((always_inline)) {
      F a, b;
      S::load2(z + at, a, b);
      const F x = scaled_softmax(k, row, a), y = scaled_softmax(k, row, b);
      S::template store2<kStream>(out + at, x, y);
    };
    for (; i + 2 * kPair <= n; i += 2 * kPair) {
      step(i);
      step(i + kPair);
    }
    for (; i + kPair <= n; i += kPair) step(i);
    if (i < n) few(k, row, z + i, int(n - i), out + i);
  }

  template <bool kStream, class T>
  static void rows(const Logits& logits, const Labels& labels, const RowGradients& gradients,
                   void* out, int64_t begin, int64_t end) {
    const Constants k;
    const int64_t classes = logits.classes;
    for_each_label(labels, begin, end, [&](int64_t i, int64_t y) {
      T* to = static_cast<T*>(out) + i * classes;
      const float scale = gradients.scale[i * gradients.scale_stride] / gradients.divisor;
      if (scale == 0.0f || labels.ignores(y)) {
        std::memset(static_cast<void*>(to), 0, size_t(classes) * sizeof(T));
        return;
      }
      const T* z = logits.row<T>(i);
      const Normaliser norm = normaliser(k, z, classes, gradients, i);
      const Row row{S::set(norm.m), S::set(norm.log_sum), S::set(scale)};
      write_row<kStream>(k, row, z, classes, to);
      if (uint64_t(y) >= uint64_t(classes)) return;
      // p - 1 at the label, from the loss: computed from lse it would be inaccurate near 0.
      const double at_label = std::expm1(-double(gradients.loss[i])) + (norm.m - norm.m);
      from_float(float(at_label * double(scale)), to[y]);
    });
    if (kStream) S::fence();
  }
};

// What cross_entropy.cpp calls, one set per target: with normal or non-temporal stores.
struct GradientRows {
  using Function = void (*)(const Logits&, const Labels&, const RowGradients&, void*, int64_t,
                            int64_t);
  Function cached, streamed;
};

template <class S>
GradientRows gradient_rows(LogitDtype dtype) {
  using G = RowGradient<S>;
  switch (dtype) {
    case LogitDtype::kFloat16:
      return {G::template rows<false, Float16>, G::template rows<true, Float16>};
    case LogitDtype::kBFloat16:
      return {G::template rows<false, BFloat16>, G::template rows<true, BFloat16>};
    case LogitDtype::kFloat32:
      break;
  }
  return {G::template rows<false, float>, G::template rows<true, float>};
}

GradientRows gradient_rows_avx512(LogitDtype dtype);
GradientRows gradient_rows_avx2(LogitDtype dtype);
GradientRows gradient_rows_portable(LogitDtype dtype);

}  // namespace emp
