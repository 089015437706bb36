// The row kernels' primitives in compiler vectors (vector_size of GCC and Clang) of 4 floats, the
// width of SSE2 and NEON: wider ones are no faster there and compile two to eight times more
// slowly.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "dtypes.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace emp::portable {

struct Simd {
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t M __attribute__((vector_size(16)));  // all ones or all zeros per lane
  static constexpr int kWidth = 4;
  static constexpr int kTableBits = 3;  // exp2's table has 8 entries, two registers of NEON

  static F set(float x) { return F{x, x, x, x}; }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  // a * b + c: `fma` uses the exact product, `madd` whatever is fastest on the target. Without a
  // fused instruction fma uses double and rounds twice, which suffices here: the kernels need
  // exactness only where a * b is small relative to c.
  static F fma(F a, F b, F c) {
#if defined(__aarch64__)
    return vfmaq_f32(c, a, b);
#else
    const Double product = __builtin_convertvector(a, Double) * __builtin_convertvector(b, Double);
    return __builtin_convertvector(product + __builtin_convertvector(c, Double), F);
#endif
  }
  static F madd(F a, F b, F c) {
#if defined(__aarch64__)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
  }
  // max(a, b) is b if either is NaN.
  static F max(F a, F b) { return a > b ? a : b; }
  static float reduce_add(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static float reduce_max(F a) { return std::max(std::max(a[0], a[1]), std::max(a[2], a[3])); }

  static M not_less(F a, F b) { return ~(a < b); }
  static M not_equal(F a, F b) { return a != b; }
  static M equal(F a, F b) { return a == b; }
  static M both(M a, M b) { return a & b; }
  static M either(M a, M b) { return a | b; }
  static M none() { return M{}; }
  static M all() { return ~M{}; }
  static int count(M a) {
#if defined(__aarch64__)
    return -vaddvq_s32(a);
#else
    return -(a[0] + a[1] + a[2] + a[3]);
#endif
  }
  static bool any(M a) {
#if defined(__aarch64__)
    return vmaxvq_u32(uint32x4_t(a)) != 0;
#elif defined(__SSE2__)
    return _mm_movemask_ps(F(a)) != 0;
#else
    return (a[0] | a[1] | a[2] | a[3]) != 0;
#endif
  }
  static bool any_nan(F a) { return any(not_equal(a, a)); }
  static F zero_unless(M keep, F a) { return F(keep & M(a)); }

  // 2^(k / 8) for the integer k in the low bits of `magic_k` = k + 1.5 * 2^23. The table
  // holds bits(2^(j / 8)) - (j << 20): adding k << 20 then adds floor(k / 8) to the exponent.
  struct Exp2Table {
#if defined(__aarch64__)
    uint8x16x2_t entries;
#else
    uint32_t entries[8];
#endif
  };
  static Exp2Table load_table(const int32_t* entries) {
    Exp2Table table;
    std::memcpy(&table.entries, entries, sizeof table.entries);
    return table;
  }
  static F exp2_scaled(const Exp2Table& table, F magic_k) {
    const Word k = Word(magic_k), j = k & 7u;
#if defined(__aarch64__)
    const Word bytes = j * 0x04040404u + 0x03020100u;  // the bytes of an entry
    const Word entry = Word(vqtbl2q_u8(table.entries, uint8x16_t(bytes)));
#else
    const Word entry{table.entries[j[0]], table.entries[j[1]], table.entries[j[2]],
                     table.entries[j[3]]};
#endif
    return F(entry + (k << (23 - kTableBits)));
  }

  static constexpr bool kTransposes = false;
  static constexpr bool kHasExp4 = false;
  struct Exp4 {};

  // Bits of 2 * kWidth 16-bit elements.
  typedef uint16_t Bits __attribute__((vector_size(16)));
  static Bits load_bits(const void* p) {
    Bits bits;
    std::memcpy(&bits, p, sizeof bits);
    return bits;
  }
  static Bits max_signed(Bits a, Bits b) { return SignedBits(a) > SignedBits(b) ? a : b; }
  static Bits max_unsigned(Bits a, Bits b) { return a > b ? a : b; }
  static uint16_t reduce_max_unsigned(Bits a) {
    uint16_t x[2 * kWidth];
    std::memcpy(x, &a, sizeof a);
    return *std::max_element(x, x + 2 * kWidth);
  }
  static int16_t reduce_max_signed(Bits a) {
    int16_t x[2 * kWidth];
    std::memcpy(x, &a, sizeof a);
    return *std::max_element(x, x + 2 * kWidth);
  }

  // 2 * kWidth elements from p, in an order that depends only on the type.
  static void load2(const float* p, F& a, F& b) {
    a = load(p);
    b = load(p + kWidth);
  }
  template <class T>
  static void load2(const T* p, F& a, F& b) {
    widen(T{}, load_bits(p), a, b);
  }
  // The first n < 2 * kWidth elements from p, padded with -inf.
  static void load2_first(const float* p, int n, F& a, F& b) {
    float padded[2 * kWidth];
    std::copy(p, p + n, padded);
    std::fill(padded + n, padded + 2 * kWidth, -__builtin_inff());
    load2(padded, a, b);
  }
  static void load2_first(const BFloat16* p, int n, F& a, F& b) {
    widen(BFloat16{}, load_bits_first(p, n, 0xff80), a, b);
  }
  static void load2_first(const Float16* p, int n, F& a, F& b) {
    widen(Float16{}, load_bits_first(p, n, 0xfc00), a, b);
  }
  template <class T>
  static Bits load_bits_first(const T* p, int n, uint16_t fill) {
    T padded[2 * kWidth];
    std::copy(p, p + n, padded);
    std::fill(padded + n, padded + 2 * kWidth, T{fill});
    return load_bits(padded);
  }
  static F load(const float* p) {
    F a;
    std::memcpy(&a, p, sizeof a);
    return a;
  }
  static void store(float* p, F a) { std::memcpy(p, &a, sizeof a); }
  // kWidth elements in order.
  static F load(const BFloat16* p) { return F(words(p) << 16); }
  static F load(const Float16* p) { return float_of_half(words(p)); }

  // Writes what load2 would read back, rounded to nearest even. There are no streaming stores.
  template <bool kStream, class T>
  static void store2(T* p, F a, F b) {
    if constexpr (sizeof(T) == 4) {
      store(p, a);
      store(p + kWidth, b);
    } else {
      const Word bits = narrow(T{}, a) | narrow(T{}, b) << 16;
      std::memcpy(static_cast<void*>(p), &bits, sizeof bits);
    }
  }
  // The same, in order.
  template <bool kStream, class T>
  static void store2_ordered(T* p, F a, F b) {
    if constexpr (sizeof(T) == 4) {
      store2<kStream>(p, a, b);
    } else {
      const Half low = __builtin_convertvector(narrow(T{}, a), Half);
      const Half high = __builtin_convertvector(narrow(T{}, b), Half);
      std::memcpy(static_cast<void*>(p), &low, sizeof low);
      std::memcpy(static_cast<void*>(p + kWidth), &high, sizeof high);
    }
  }
  // The first n < 2 * kWidth elements.
  template <class T>
  static void store2_first(T* p, int n, F a, F b) {
    T padded[2 * kWidth];
    store2<false>(padded, a, b);
    std::copy(padded, padded + n, p);
  }
  static void fence() {}

 private:
  typedef uint32_t Word __attribute__((vector_size(16)));
  typedef int16_t SignedBits __attribute__((vector_size(16)));
  typedef uint16_t Half __attribute__((vector_size(8)));
  typedef double Double __attribute__((vector_size(32)));

  template <class T>
  static Word words(const T* p) {
    Half bits;
    std::memcpy(&bits, p, sizeof bits);
    return __builtin_convertvector(bits, Word);
  }

  // Splits words into their low halves, a, and high halves, b.
  static void widen(BFloat16, Bits x, F& a, F& b) {
    a = F(Word(x) << 16);
    b = F(Word(x) & 0xffff0000u);
  }
  static void widen(Float16, Bits x, F& a, F& b) {
    a = float_of_half(Word(x) & 0xffffu);
    b = float_of_half(Word(x) >> 16);
  }
  // The vector versions of dtypes.h's to_float and from_float, line by line.
  static F float_of_half(Word x) {
    const Word magnitude = x & 0x7fffu;
    const Word finite = Word(F(magnitude << 13) * 0x1p112f);
    const Word infinite = Word(M(magnitude) >= 0x7c00) & 0x7f800000u;
    return F(finite | infinite | (x & 0x8000u) << 16);
  }
  static Word narrow(BFloat16, F x) {
    const Word bits = Word(x);
    return (x == x ? bits + 0x7fffu + ((bits >> 16) & 1u) : bits | 0x00400000u) >> 16;
  }
  static Word narrow(Float16, F x) {
    const Word bits = Word(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    const M order = M(magnitude);
    const Word normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const Word subnormal = Word(F(magnitude) + 0.5f) - 0x3f000000u;
    Word half = order < 0x38800000 ? subnormal : normal;
    half = order >= 0x477ff000 ? Word{} + 0x7c00u : half;
    half = order >= 0x7f800001 ? Word{} + 0x7e00u : half;
    return sign | half;
  }
};

}  // namespace emp::portable
