// AVX2 (with FMA and F16C) primitives for the row kernels: 8 floats a vector.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "dtypes.h"

namespace emp::avx2 {

struct Simd {
  using F = __m256;
  using M = __m256;  // all ones or all zeros per lane
  static constexpr int kWidth = 8;
  static constexpr int kTableBits = 3;  // exp2's table has 8 entries, one register

  static F set(float x) { return _mm256_set1_ps(x); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  // a * b + c: `fma` uses the exact product, `madd` whatever is fastest on the target.
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F madd(F a, F b, F c) { return fma(a, b, c); }
  // max(a, b) is b if either is NaN.
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static float reduce_add(F a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  static float reduce_max(F a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }

  static M not_less(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_NLT_UQ); }
  static M not_equal(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_NEQ_UQ); }
  static M equal(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
  static M both(M a, M b) { return _mm256_and_ps(a, b); }
  static M either(M a, M b) { return _mm256_or_ps(a, b); }
  static M none() { return _mm256_setzero_ps(); }
  static M all() { return _mm256_castsi256_ps(_mm256_set1_epi32(-1)); }
  static int count(M a) { return __builtin_popcount(unsigned(_mm256_movemask_ps(a))); }
  static bool any(M a) { return _mm256_movemask_ps(a) != 0; }
  static bool any_nan(F a) { return _mm256_movemask_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)) != 0; }
  static F zero_unless(M keep, F a) { return _mm256_and_ps(keep, a); }

  // 2^(k / 8) for the integer k in the low bits of `magic_k` = k + 1.5 * 2^23. The table
  // holds bits(2^(j / 8)) - (j << 20): adding k << 20 then adds floor(k / 8) to the exponent.
  struct Exp2Table {
    __m256i entries;
  };
  static Exp2Table load_table(const int32_t* entries) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(entries))};
  }
  static F exp2_scaled(const Exp2Table& table, F magic_k) {
    const __m256i k = _mm256_castps_si256(magic_k);
    const __m256i entry = _mm256_permutevar8x32_epi32(table.entries, k);
    return _mm256_castsi256_ps(_mm256_add_epi32(entry, _mm256_slli_epi32(k, 23 - kTableBits)));
  }

  static constexpr bool kTransposes = false;
  static constexpr bool kHasExp4 = false;
  struct Exp4 {};

  // Bits of 2 * kWidth 16-bit elements.
  using Bits = __m256i;
  static Bits load_bits(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static Bits max_signed(Bits a, Bits b) { return _mm256_max_epi16(a, b); }
  static Bits max_unsigned(Bits a, Bits b) { return _mm256_max_epu16(a, b); }
  static uint16_t reduce_max_unsigned(Bits a) {
    const __m128i c = _mm_max_epu16(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    // minpos finds the smallest: complement.
    const __m128i all_ones = _mm_set1_epi16(-1);
    return uint16_t(~_mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(c, all_ones)), 0));
  }
  static int16_t reduce_max_signed(Bits a) {  // flipping the sign bit makes the order unsigned
    const __m256i flip = _mm256_set1_epi16(int16_t(0x8000));
    return int16_t(reduce_max_unsigned(_mm256_xor_si256(a, flip)) ^ 0x8000u);
  }

  // 2 * kWidth elements from p, in an order that depends only on the type.
  static void load2(const float* p, F& a, F& b) {
    a = _mm256_loadu_ps(p);
    b = _mm256_loadu_ps(p + 8);
  }
  static void load2(const BFloat16* p, F& a, F& b) { widen_bfloat16(load_bits(p), a, b); }
  static void load2(const Float16* p, F& a, F& b) { widen_float16(load_bits(p), a, b); }
  // The first n < 2 * kWidth elements from p, padded with -inf.
  static void load2_first(const float* p, int n, F& a, F& b) {
    alignas(32) float padded[16];
    std::copy(p, p + n, padded);
    std::fill(padded + n, padded + 16, -__builtin_inff());
    load2(padded, a, b);
  }
  static void load2_first(const BFloat16* p, int n, F& a, F& b) {
    widen_bfloat16(load_bits_first(p, n, 0xff80), a, b);
  }
  static void load2_first(const Float16* p, int n, F& a, F& b) {
    widen_float16(load_bits_first(p, n, 0xfc00), a, b);
  }
  template <class T>
  static Bits load_bits_first(const T* p, int n, uint16_t fill) {
    alignas(32) T padded[16];
    std::copy(p, p + n, padded);
    std::fill(padded + n, padded + 16, T{fill});
    return load_bits(padded);
  }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F a) { _mm256_storeu_ps(p, a); }
  // kWidth elements in order.
  static F load(const BFloat16* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_half(p)), 16));
  }
  static F load(const Float16* p) { return _mm256_cvtph_ps(load_half(p)); }

  // Writes what load2 would read back, rounded to nearest even. kStream uses non-temporal stores: p
  // must be 64-byte aligned, and other threads see the data after fence().
  template <bool kStream, class T>
  static void store2(T* p, F a, F b) {
    if constexpr (sizeof(T) == 4) {
      put<kStream>(p, _mm256_castps_si256(a));
      put<kStream>(p + 8, _mm256_castps_si256(b));
    } else {
      put<kStream>(p, narrow(T{}, a, b));
    }
  }
  // The same, in order.
  template <bool kStream, class T>
  static void store2_ordered(T* p, F a, F b) {
    store2<kStream>(p, a, b);
  }
  template <bool kStream>
  static void store2_ordered(BFloat16* p, F a, F b) {
    const __m256i low = _mm256_srli_epi32(rounded_to_bfloat16(a), 16);
    const __m256i high = _mm256_srli_epi32(rounded_to_bfloat16(b), 16);
    put<kStream>(p, _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8));
  }
  // The first n < 2 * kWidth elements.
  template <class T>
  static void store2_first(T* p, int n, F a, F b) {
    alignas(64) T padded[16];
    store2<false>(padded, a, b);
    std::copy(padded, padded + n, p);
  }
  static void fence() { _mm_sfence(); }

 private:
  static __m128i load_half(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
  }
  template <bool kStream>
  static void put(void* p, __m256i x) {
    if constexpr (kStream)
      _mm256_stream_si256(static_cast<__m256i*>(p), x);
    else
      _mm256_storeu_si256(static_cast<__m256i*>(p), x);
  }
  static __m256i rounded_to_bfloat16(F a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_add_epi32(bits, up), quiet, nan);
  }
  static __m256i narrow(BFloat16, F a, F b) {
    const __m256i low = _mm256_srli_epi32(rounded_to_bfloat16(a), 16);
    return _mm256_blend_epi16(low, rounded_to_bfloat16(b), 0xaa);
  }
  static __m256i narrow(Float16, F a, F b) {
    const __m128i low = _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m128i high = _mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
  }
  static void widen_bfloat16(Bits x, F& a, F& b) {
    a = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
    b = _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(int(0xffff0000u))));
  }
  static void widen_float16(Bits x, F& a, F& b) {
    a = _mm256_cvtph_ps(_mm256_castsi256_si128(x));
    b = _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1));
  }
};

}  // namespace emp::avx2
