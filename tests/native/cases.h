// Shared by the native tests: checks that count failures, and heap blocks of exactly the accessible
// size.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>

#include "cpu/dtypes.h"
#include "cpu/targets.h"

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
inline int failures = 0;

inline void check(bool good, const char* what, long long detail) {
  if (good) return;
  std::printf("FAILED: %s (%lld)\n", what, detail);
  ++failures;
}

inline bool close(double got, double expected) {
  if (std::isnan(expected)) return std::isnan(got);
  if (std::isinf(expected)) return got == expected;
  return std::fabs(got - expected) <= 1e-5 * std::fabs(expected) + 1e-37;
}

// A block of exactly n elements, so that the sanitizer reports any access before or after it.
template <class T>
std::unique_ptr<T[]> exactly(int64_t n) {
  return std::unique_ptr<T[]>(new T[size_t(n)]());
}

template <class T>
T narrow(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, emp::BFloat16>) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return {uint16_t(bits >> 16 | (x != x ? 0x40 : 0))};
  } else {
    if (x != x) return {0x7e00};
    if (std::isinf(x)) return {uint16_t(x > 0 ? 0x7c00 : 0xfc00)};
    const float clamped = std::clamp(x, -60000.0f, 60000.0f);
    const float magnitude = std::fabs(clamped);
    uint16_t low = 0, high = 0x7bff;  // the largest half not above the magnitude
    while (low < high) {
      const uint16_t middle = uint16_t((low + high + 1) / 2);
      if (emp::to_float(emp::Float16{middle}) <= magnitude)
        low = middle;
      else
        high = uint16_t(middle - 1);
    }
    return {uint16_t(low | (std::signbit(clamped) ? 0x8000u : 0u))};
  }
}

// The expected results of a row z (classes,) with label y, in double precision.
struct Expected {
  double loss, entropy, lse;
};

template <class T>
Expected naive(const T* z, int64_t classes, int64_t y) {
  double m = -INFINITY;
  bool nan = false;
  for (int64_t c = 0; c < classes; ++c) {
    const double x = emp::to_float(z[c]);
    nan |= std::isnan(x);
    m = std::max(m, x);
  }
  if (nan) return {NAN, NAN, NAN};
  if (std::isinf(m)) return {m - double(emp::to_float(z[y])), NAN, m};
  double u = 0, t = 0;
  bool skipped = false;
  for (int64_t c = 0; c < classes; ++c) {
    const double d = double(emp::to_float(z[c])) - m;
    if (d == 0 && !skipped) {
      skipped = true;
      continue;
    }
    if (std::isinf(d)) continue;
    u += std::exp(d);
    t += std::exp(d) * d;
  }
  const double log_sum = std::log1p(u);
  return {(m - double(emp::to_float(z[y]))) + log_sum, log_sum - t / (1 + u), m + log_sum};
}

// The return value of main.
inline int report(const char* what) {
  std::printf("%s (%s): %d failures\n", what, emp::target_name(emp::target()), failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
