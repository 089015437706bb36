// AVX-512 (F, BW, DQ, VL) primitives for the row kernels: 16 floats a vector.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "dtypes.h"

namespace emp::avx512 {

struct Simd {
  using F = __m512;
  using M = __mmask16;
  static constexpr int kWidth = 16;
  static constexpr int kTableBits = 5;  // exp2's table has 32 entries, two registers

  static F set(float x) { return _mm512_set1_ps(x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  // a * b + c: `fma` uses the exact product, `madd` whatever is fastest on the target.
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F madd(F a, F b, F c) { return fma(a, b, c); }
  // max(a, b) is b if either is NaN.
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static float reduce_add(F a) { return _mm512_reduce_add_ps(a); }
  static float reduce_max(F a) { return _mm512_reduce_max_ps(a); }

  static M not_less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
  static M not_equal(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
  static M both(M a, M b) { return M(a & b); }
  static M either(M a, M b) { return M(a | b); }
  static int count(M a) { return __builtin_popcount(a); }
  static bool any(M a) { return a != 0; }
  static bool any_nan(F a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) != 0; }
  static M equal(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static M none() { return 0; }
  static M all() { return 0xffff; }
  static F zero_unless(M keep, F a) { return _mm512_maskz_mov_ps(keep, a); }
  // a + b where keep is set, else a.
  static F add_where(M keep, F a, F b) { return _mm512_mask_add_ps(a, keep, a, b); }
  // a * b + c where keep is set, else c.
  static F fma_where(M keep, F a, F b, F c) { return _mm512_mask3_fmadd_ps(a, b, c, keep); }

  // 2^(k / 32) for the integer k in the low bits of `magic_k` = k + 1.5 * 2^23. The table
  // holds bits(2^(j / 32)) - (j << 18): adding k << 18 then adds floor(k / 32) to the exponent.
  struct Exp2Table {
    __m512i low, high;
  };
  static Exp2Table load_table(const int32_t* entries) {
    return {_mm512_loadu_si512(entries), _mm512_loadu_si512(entries + 16)};
  }
  static F exp2_scaled(const Exp2Table& table, F magic_k) {
    const __m512i k = _mm512_castps_si512(magic_k);
    const __m512i entry = _mm512_permutex2var_epi32(table.low, k, table.high);
    return _mm512_castsi512_ps(_mm512_add_epi32(entry, _mm512_slli_epi32(k, 23 - kTableBits)));
  }
  // 4^y for y in [-62.9, 62.9], within 3.5e-7: y rounded to 1 / 64 gives the table entry and the
  // exponent; the remainder r in [-1 / 128, 1 / 128] enters as scale * ((r + kCentre)^2 + c), one
  // operation less than a polynomial with three free coefficients. kCentre is near log4(e), the
  // minimum of the best parabola, and a multiple of 1 / 64, so that it is subtracted from the
  // rounded y exactly. With base 4 the scale is near 1, so the entries, which include it, are no
  // closer to the smallest exponent than their powers.
  static constexpr bool kHasExp4 = true;
  struct Exp4 {
    static constexpr float kCentre = 46.0f / 64;
    static constexpr float kMagic = 0x1.8p17f;  // adding it puts 64 y in the low bits
    Exp2Table table;
    F c, magic, magic_centre;

    Exp4() {
      // The relative error is +e at both ends of [-h, h] and -e at 0.
      const double h = 1.0 / 128, up = std::exp2(2 * h), down = std::exp2(-2 * h);
      const double slope = (up - down) / 2, middle = (up + down) / 2;
      const double ratio = middle - slope * h / (2 * kCentre), e = (1 - ratio) / (1 + ratio);
      const double scale = (1 + e) * slope / (2 * h * kCentre);
      int32_t entries[32];
      for (int j = 0; j < 32; ++j) {
        const float x = float(scale * std::exp2(j / 32.0));
        std::memcpy(&entries[j], &x, 4);
        entries[j] -= j << (23 - kTableBits);
      }
      table = load_table(entries);
      c = set(float((1 - e) / scale - double(kCentre) * kCentre));
      magic = set(kMagic);
      magic_centre = set(kMagic + kCentre);
    }
    F operator()(F y) const {
      const F magic_k = add(y, magic);
      const F s = sub(y, sub(magic_k, magic_centre));
      return mul(exp2_scaled(table, magic_k), fma(s, s, c));
    }
  };

  // Bits of 2 * kWidth 16-bit elements.
  using Bits = __m512i;
  static Bits load_bits(const void* p) { return _mm512_loadu_si512(p); }
  static Bits max_signed(Bits a, Bits b) { return _mm512_max_epi16(a, b); }
  static Bits max_unsigned(Bits a, Bits b) { return _mm512_max_epu16(a, b); }
  static uint16_t reduce_max_unsigned(Bits a) {
    const __m256i b = _mm256_max_epu16(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
    const __m128i c = _mm_max_epu16(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
    // minpos finds the smallest: complement.
    const __m128i all = _mm_set1_epi16(-1);
    return uint16_t(~_mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(c, all)), 0));
  }
  static int16_t reduce_max_signed(Bits a) {  // flipping the sign bit makes the order unsigned
    const __m512i flip = _mm512_set1_epi16(int16_t(0x8000));
    return int16_t(reduce_max_unsigned(_mm512_xor_si512(a, flip)) ^ 0x8000u);
  }

  // 2 * kWidth elements from p, in an order that depends only on the type.
  static void load2(const float* p, F& a, F& b) {
    a = _mm512_loadu_ps(p);
    b = _mm512_loadu_ps(p + 16);
  }
  static void load2(const BFloat16* p, F& a, F& b) {
    const __m512i x = _mm512_loadu_si512(p);
    a = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    b = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(int(0xffff0000u))));
  }
  static void load2(const Float16* p, F& a, F& b) {
    a = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    b = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16)));
  }
  // The first n < 2 * kWidth elements from p, padded with -inf.
  static void load2_first(const float* p, int n, F& a, F& b) {
    const F fill = set(-__builtin_inff());
    const uint32_t mask = (uint32_t(1) << n) - 1;
    a = _mm512_mask_loadu_ps(fill, __mmask16(mask), p);
    b = _mm512_mask_loadu_ps(fill, __mmask16(mask >> 16), p + 16);
  }
  static void load2_first(const BFloat16* p, int n, F& a, F& b) {
    const __m512i x = load_bits_first(p, n, 0xff80);
    a = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    b = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(int(0xffff0000u))));
  }
  static void load2_first(const Float16* p, int n, F& a, F& b) {
    const __m512i x = load_bits_first(p, n, 0xfc00);
    a = _mm512_cvtph_ps(_mm512_castsi512_si256(x));
    b = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1));
  }
  static Bits load_bits_first(const void* p, int n, uint16_t fill) {
    const uint32_t mask = (uint32_t(1) << n) - 1;
    return _mm512_mask_loadu_epi16(_mm512_set1_epi16(int16_t(fill)), mask, p);
  }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  // kWidth elements in order.
  static F load(const BFloat16* p) {
    const __m512i x = _mm512_cvtepu16_epi32(load_half(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
  }
  static F load(const Float16* p) { return _mm512_cvtph_ps(load_half(p)); }

  // The first n <= kWidth elements from p, in order, padded with 0.
  static F load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static F load_first(const BFloat16* p, int n) {
    const __m512i x = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
  }
  static F load_first(const Float16* p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
  }
  // Lane j of rows[i] becomes lane i of rows[j].
  static constexpr bool kTransposes = true;
  static void transpose(F (&rows)[16]) {
    F x[16];
    for (int i = 0; i < 16; i += 2) {
      x[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
      x[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    // y[i + j]: of rows i to i + 3, each quarter's lane j.
    F y[16];
    for (int i = 0; i < 16; i += 4) {
      for (int j = 0; j < 2; ++j) {
        const __m512d low = _mm512_castps_pd(x[i + j]), high = _mm512_castps_pd(x[i + 2 + j]);
        y[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
        y[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
      }
    }
    constexpr int kEven = 0x88, kOdd = 0xdd;  // quarters 0 and 2, or 1 and 3, of both arguments
    for (int j = 0; j < 4; ++j) {
      const F even = _mm512_shuffle_f32x4(y[j], y[4 + j], kEven);
      const F odd = _mm512_shuffle_f32x4(y[j], y[4 + j], kOdd);
      const F even8 = _mm512_shuffle_f32x4(y[8 + j], y[12 + j], kEven);
      const F odd8 = _mm512_shuffle_f32x4(y[8 + j], y[12 + j], kOdd);
      rows[j] = _mm512_shuffle_f32x4(even, even8, kEven);
      rows[4 + j] = _mm512_shuffle_f32x4(odd, odd8, kEven);
      rows[8 + j] = _mm512_shuffle_f32x4(even, even8, kOdd);
      rows[12 + j] = _mm512_shuffle_f32x4(odd, odd8, kOdd);
    }
  }
  static void store(float* p, F a) { _mm512_storeu_ps(p, a); }

  // Writes what load2 would read back, rounded to nearest even. kStream uses non-temporal stores: p
  // must be 64-byte aligned, and other threads see the data after fence().
  template <bool kStream, class T>
  static void store2(T* p, F a, F b) {
    if constexpr (sizeof(T) == 4) {
      put<kStream>(p, _mm512_castps_si512(a));
      put<kStream>(p + 16, _mm512_castps_si512(b));
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
    const __m512i low = _mm512_srli_epi32(rounded_to_bfloat16(a), 16);
    const __m512i high = _mm512_srli_epi32(rounded_to_bfloat16(b), 16);
    const __m512i words = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(low));
    put<kStream>(p, _mm512_inserti64x4(words, _mm512_cvtepi32_epi16(high), 1));
  }
  // The first n < 2 * kWidth elements.
  static void store2_first(float* p, int n, F a, F b) {
    const uint32_t mask = (uint32_t(1) << n) - 1;
    _mm512_mask_storeu_ps(p, __mmask16(mask), a);
    _mm512_mask_storeu_ps(p + 16, __mmask16(mask >> 16), b);
  }
  template <class T>
  static void store2_first(T* p, int n, F a, F b) {
    _mm512_mask_storeu_epi16(p, (uint32_t(1) << n) - 1, narrow(T{}, a, b));
  }
  static void fence() { _mm_sfence(); }

 private:
  static __m256i load_half(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static __mmask16 first(int n) { return __mmask16((uint32_t(1) << n) - 1); }
  template <bool kStream>
  static void put(void* p, __m512i x) {
    if constexpr (kStream)
      _mm512_stream_si512(static_cast<__m512i*>(p), x);
    else
      _mm512_storeu_si512(p, x);
  }
  static __m512i rounded_to_bfloat16(F a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(_mm512_add_epi32(bits, up), nan, quiet);
  }
  static __m512i narrow(BFloat16, F a, F b) {
    const __m512i low = _mm512_srli_epi32(rounded_to_bfloat16(a), 16);
    return _mm512_mask_blend_epi16(0xaaaaaaaau, low, rounded_to_bfloat16(b));
  }
  static __m512i narrow(Float16, F a, F b) {
    const __m256i low = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256i high = _mm512_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
};

}  // namespace emp::avx512
