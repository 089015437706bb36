// Columns of a row as float32, in order, for any element type and one SIMD target.
#pragma once

#include <algorithm>
#include <cstdint>

#include "row_sums.h"

namespace emp {

template <class S>
struct Columns {
  using Kernel = RowKernel<S>;
  using F = typename S::F;
  static constexpr int kWidth = S::kWidth;
  static constexpr int64_t kPair = 2 * kWidth;
  static constexpr int64_t kChunk = 1024;  // columns at a time, which fit in the L1 cache

  struct alignas(64) Buffer {
    float x[kChunk];
  };

  static int64_t size_of(LogitDtype dtype) { return dtype == LogitDtype::kFloat32 ? 4 : 2; }
  static const void* row_of(const Logits& logits, int64_t i) {
    if (logits.dtype == LogitDtype::kFloat32) return logits.row<float>(i);
    return logits.row<BFloat16>(i);
  }
  static double element(const void* row, LogitDtype dtype, int64_t i) {
    if (dtype == LogitDtype::kFloat16) return to_float(static_cast<const Float16*>(row)[i]);
    if (dtype == LogitDtype::kBFloat16) return to_float(static_cast<const BFloat16*>(row)[i]);
    return static_cast<const float*>(row)[i];
  }

  // n <= kChunk columns of a row from `start` on: in place, or converted in `buffer`.
  static const float* floats(const void* row, LogitDtype dtype, int64_t start, int64_t n,
                             Buffer& buffer) {
    float highest;
    if (dtype == LogitDtype::kFloat32) return static_cast<const float*>(row) + start;
    return floats(row, dtype, start, n, buffer, highest);
  }
  // Also the highest of them; a NaN may or may not propagate.
  static const float* floats(const void* row, LogitDtype dtype, int64_t start, int64_t n,
                             Buffer& buffer, float& highest) {
    switch (dtype) {
      case LogitDtype::kFloat16:
        highest = widen(static_cast<const Float16*>(row) + start, n, buffer.x);
        return buffer.x;
      case LogitDtype::kBFloat16:
        highest = widen(static_cast<const BFloat16*>(row) + start, n, buffer.x);
        return buffer.x;
      case LogitDtype::kFloat32:
        break;
    }
    const float* z = static_cast<const float*>(row) + start;
    highest = Kernel::highest_of(z, n);
    return z;
  }

  // Lowest index, relative to `start`, of `value` among n columns from `start` on, or n.
  static int64_t find(const void* row, LogitDtype dtype, int64_t start, int64_t n, float value) {
    switch (dtype) {
      case LogitDtype::kFloat16:
        return Kernel::find(static_cast<const Float16*>(row) + start, n, value);
      case LogitDtype::kBFloat16:
        return Kernel::find(static_cast<const BFloat16*>(row) + start, n, value);
      case LogitDtype::kFloat32:
        break;
    }
    return Kernel::find(static_cast<const float*>(row) + start, n, value);
  }

  // Writes n columns from `start` on, rounded to nearest even; with `stream` by non-temporal
  // stores, visible to other threads after fence().
  static void write(LogitDtype dtype, const float* from, int64_t start, int64_t n, void* row,
                    bool stream) {
    switch (dtype) {
      case LogitDtype::kFloat16:
        return write(from, n, static_cast<Float16*>(row) + start, stream);
      case LogitDtype::kBFloat16:
        return write(from, n, static_cast<BFloat16*>(row) + start, stream);
      case LogitDtype::kFloat32:
        break;
    }
    write(from, n, static_cast<float*>(row) + start, stream);
  }
  // Number of columns up to the next cache line boundary.
  static int64_t to_next_line(LogitDtype dtype, const void* row) {
    const int64_t past = int64_t(reinterpret_cast<uintptr_t>(row) % 64);
    return past == 0 ? 0 : (64 - past) / size_of(dtype);
  }

 private:
  template <class T>
  static float widen(const T* from, int64_t n, float* to) {
    F m0 = S::set(-Kernel::kInf), m1 = m0;
    int64_t i = 0;
    for (; i + kPair <= n; i += kPair) {
      const F a = S::load(from + i), b = S::load(from + i + kWidth);
      m0 = S::max(m0, a);
      m1 = S::max(m1, b);
      S::store(to + i, a);
      S::store(to + i + kWidth, b);
    }
    float highest = S::reduce_max(S::max(m0, m1));
    for (; i < n; ++i) {
      to[i] = to_float(from[i]);
      if (!(to[i] <= highest)) highest = to[i];
    }
    return highest;
  }
  template <class T>
  static void write(const float* from, int64_t n, T* to, bool stream) {
    if (stream)
      write<true>(from, n, to);
    else
      write<false>(from, n, to);
  }
  template <bool kStream, class T>
  static void write(const float* from, int64_t n, T* to) {
    int64_t i = 0;
    if (kStream)
      for (; i < n && reinterpret_cast<uintptr_t>(to + i) % 64 != 0; ++i)
        from_float(from[i], to[i]);
    for (; i + 2 * kPair <= n; i += 2 * kPair) {
      S::template store2_ordered<kStream>(to + i, S::load(from + i), S::load(from + i + kWidth));
      S::template store2_ordered<kStream>(to + i + kPair, S::load(from + i + kPair),
                                          S::load(from + i + kPair + kWidth));
    }
    for (; i < n; ++i) from_float(from[i], to[i]);
  }
};

}  // namespace emp
