// The row kernels' primitives in plain C++, for processors without AVX2: 8 floats a vector.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "dtypes.h"

namespace emp::portable {

struct Simd {
  static constexpr int kWidth = 8;
  static constexpr int kTableBits = 5;
  struct F {
    float x[kWidth];
  };
  struct M {
    bool x[kWidth];
  };

  static F set(float x) {
    return each([=](int) { return x; });
  }
  static F add(F a, F b) {
    return each([&](int i) { return a.x[i] + b.x[i]; });
  }
  static F sub(F a, F b) {
    return each([&](int i) { return a.x[i] - b.x[i]; });
  }
  static F mul(F a, F b) {
    return each([&](int i) { return a.x[i] * b.x[i]; });
  }
  // Rounded twice where the target has no fused instruction: the kernels only need one rounding
  // more than that of a * b where a * b is small against c.
  static F fma(F a, F b, F c) {
    return each([&](int i) { return float(double(a.x[i]) * double(b.x[i]) + double(c.x[i])); });
  }
  // max(a, b) is b where either is NaN.
  static F max(F a, F b) {
    return each([&](int i) { return a.x[i] > b.x[i] ? a.x[i] : b.x[i]; });
  }
  static float reduce_add(F a) {
    for (int half = kWidth / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) a.x[i] += a.x[i + half];
    return a.x[0];
  }
  static float reduce_max(F a) { return *std::max_element(a.x, a.x + kWidth); }

  static M not_less(F a, F b) {
    return each_mask([&](int i) { return !(a.x[i] < b.x[i]); });
  }
  static M not_equal(F a, F b) {
    return each_mask([&](int i) { return a.x[i] != b.x[i]; });
  }
  static M equal(F a, F b) {
    return each_mask([&](int i) { return a.x[i] == b.x[i]; });
  }
  static M both(M a, M b) {
    return each_mask([&](int i) { return a.x[i] && b.x[i]; });
  }
  static M either(M a, M b) {
    return each_mask([&](int i) { return a.x[i] || b.x[i]; });
  }
  static M none() {
    return each_mask([](int) { return false; });
  }
  static M all() {
    return each_mask([](int) { return true; });
  }
  static int count(M a) { return int(std::count(a.x, a.x + kWidth, true)); }
  static bool any_equal(F a, F b) { return count(equal(a, b)) != 0; }
  static bool any_nan(F a) { return count(not_equal(a, a)) != 0; }
  static F zero_unless(M keep, F a) {
    return each([&](int i) { return keep.x[i] ? a.x[i] : 0.0f; });
  }
  // a * b + c where keep, else c.
  static F fma_where(M keep, F a, F b, F c) {
    const F sum = fma(a, b, c);
    return each([&](int i) { return keep.x[i] ? sum.x[i] : c.x[i]; });
  }

  // 2^(k / 32) for the integer k in the low bits of `magic_k` = k + 1.5 * 2^23. The table
  // holds bits(2^(j / 32)) - (j << 18): adding k << 18 then adds floor(k / 32) to the exponent.
  struct Exp2Table {
    uint32_t entries[32];
  };
  static Exp2Table load_table(const int32_t* entries) {
    Exp2Table table;
    std::copy(entries, entries + 32, table.entries);
    return table;
  }
  static F exp2_scaled(const Exp2Table& table, F magic_k) {
    return each([&](int i) {
      uint32_t k;
      std::memcpy(&k, &magic_k.x[i], 4);
      const uint32_t bits = table.entries[k & 31] + (k << (23 - kTableBits));
      float f;
      std::memcpy(&f, &bits, 4);
      return f;
    });
  }

  static constexpr bool kTransposes = false;
  static constexpr bool kHasExp4 = false;
  struct Exp4 {};

  // Bits of 2 * kWidth 16-bit elements.
  struct Bits {
    uint16_t x[2 * kWidth];
  };
  template <class T>
  static Bits load_bits(const T* p) {
    Bits bits;
    std::memcpy(bits.x, p, sizeof bits.x);
    return bits;
  }
  static Bits max_signed(Bits a, Bits b) {
    for (int i = 0; i < 2 * kWidth; ++i)
      if (int16_t(b.x[i]) > int16_t(a.x[i])) a.x[i] = b.x[i];
    return a;
  }
  static Bits max_unsigned(Bits a, Bits b) {
    for (int i = 0; i < 2 * kWidth; ++i) a.x[i] = std::max(a.x[i], b.x[i]);
    return a;
  }
  static uint16_t reduce_max_unsigned(Bits a) { return *std::max_element(a.x, a.x + 2 * kWidth); }
  static int16_t reduce_max_signed(Bits a) {
    int16_t highest = int16_t(a.x[0]);
    for (const uint16_t bits : a.x) highest = std::max(highest, int16_t(bits));
    return highest;
  }

  // 2 * kWidth elements from p.
  template <class T>
  static void load2(const T* p, F& a, F& b) {
    a = each([&](int i) { return to_float(p[i]); });
    b = each([&](int i) { return to_float(p[i + kWidth]); });
  }
  // The first n < 2 * kWidth elements from p, the others -inf.
  template <class T>
  static void load2_first(const T* p, int n, F& a, F& b) {
    const float fill = -__builtin_inff();
    a = each([&](int i) { return i < n ? to_float(p[i]) : fill; });
    b = each([&](int i) { return i + kWidth < n ? to_float(p[i + kWidth]) : fill; });
  }
  template <class T>
  static Bits load_bits_first(const T* p, int n, uint16_t fill) {
    Bits bits;
    for (int i = 0; i < 2 * kWidth; ++i) bits.x[i] = i < n ? p[i].bits : fill;
    return bits;
  }
  static F load(const float* p) {
    return each([&](int i) { return p[i]; });
  }
  static void store(float* p, F a) { std::copy(a.x, a.x + kWidth, p); }

  // Writes what load2 would read back, rounded to nearest even. There are no streaming stores.
  template <bool kStream, class T>
  static void store2(T* p, F a, F b) {
    store2_first(p, 2 * kWidth, a, b);
  }
  // The first n elements.
  template <class T>
  static void store2_first(T* p, int n, F a, F b) {
    for (int i = 0; i < n; ++i) from_float(i < kWidth ? a.x[i] : b.x[i - kWidth], p[i]);
  }
  static void fence() {}

 private:
  template <class Function>
  static F each(Function&& f) {
    F result;
    for (int i = 0; i < kWidth; ++i) result.x[i] = f(i);
    return result;
  }
  template <class Function>
  static M each_mask(Function&& f) {
    M result;
    for (int i = 0; i < kWidth; ++i) result.x[i] = f(i);
    return result;
  }
};

}  // namespace emp::portable
