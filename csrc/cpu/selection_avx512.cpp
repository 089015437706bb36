#include <immintrin.h>

#include <algorithm>

#include "select_kernels.h"

namespace emp {
namespace {

using F = __m512;
constexpr int kWidth = 16;

// Compressed vectors take their other lanes from the source: with zeroed lanes, Zen 5 waits for the
// previous value of the result's register.

constexpr __mmask16 kAll = 0xffff;
// Mask of the valid lanes of a vector, of which `left` elements are left.
__mmask16 lanes(int64_t left) { return left >= kWidth ? kAll : __mmask16((1u << left) - 1); }

EMP_MAY_RACE SelectKernels::Collected collect(const float* scores, int64_t n, float low, float high,
                                              float* candidates) {
  const F lowest = _mm512_set1_ps(low), highest = _mm512_set1_ps(high);
  int64_t above = 0, written = 0, i = 0;
  const auto take = [&](F s, __mmask16 here) {
    const __mmask16 over = _mm512_mask_cmp_ps_mask(here, s, highest, _CMP_GT_OQ);
    const __mmask16 from_low = _mm512_mask_cmp_ps_mask(here, s, lowest, _CMP_GE_OQ);
    const __mmask16 between = __mmask16(from_low & ~over);
    above += __builtin_popcount(over);
    _mm512_storeu_ps(candidates + written, _mm512_mask_compress_ps(s, between, s));
    written += __builtin_popcount(between);
  };
  for (; i + kWidth <= n; i += kWidth) take(_mm512_loadu_ps(scores + i), kAll);
  if (i < n) take(_mm512_maskz_loadu_ps(lanes(n - i), scores + i), lanes(n - i));
  return {above, written};
}

int64_t count_at_least(const float* scores, int64_t n, float bound) {
  const F b = _mm512_set1_ps(bound);
  int64_t count = 0, i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth)
    for (int j = 0; j < 4; ++j)
      count += __builtin_popcount(
          _mm512_cmp_ps_mask(_mm512_loadu_ps(scores + i + j * kWidth), b, _CMP_GE_OQ));
  for (; i < n; i += kWidth) {
    const __mmask16 here = lanes(n - i);
    const F s = _mm512_maskz_loadu_ps(here, scores + i);
    count += __builtin_popcount(_mm512_mask_cmp_ps_mask(here, s, b, _CMP_GE_OQ));
  }
  return count;
}

template <int kCompare>
EMP_MAY_RACE int64_t compact_where(const float* scores, int64_t n, float threshold, int64_t first,
                                   int64_t* out, int64_t room) {
  const F t = _mm512_set1_ps(threshold);
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i base = _mm512_set1_epi64(first);
  int64_t written = 0, i = 0;
  const auto positions = [&](__mmask16 taken, __m512i& low, __m512i& high) {
    const __m512i position = _mm512_add_epi32(lane, _mm512_set1_epi32(int(i)));
    const __m512i packed = _mm512_mask_compress_epi32(position, taken, position);
    low = _mm512_add_epi64(base, _mm512_cvtepi32_epi64(_mm512_castsi512_si256(packed)));
    high = _mm512_add_epi64(base, _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(packed, 1)));
  };
  __m512i low, high;
  for (; i + kWidth <= n && written + kWidth <= room; i += kWidth) {
    const __mmask16 taken = _mm512_cmp_ps_mask(_mm512_loadu_ps(scores + i), t, kCompare);
    positions(taken, low, high);
    _mm512_storeu_si512(out + written, low);  // what is too much is overwritten by what follows
    _mm512_storeu_si512(out + written + 8, high);
    written += __builtin_popcount(taken);
  }
  // The end of this run's room, behind which another thread may have written.
  for (; i < n && written < room; i += kWidth) {
    const __mmask16 here = lanes(n - i);
    const F s = _mm512_maskz_loadu_ps(here, scores + i);
    const __mmask16 taken = _mm512_mask_cmp_ps_mask(here, s, t, kCompare);
    positions(taken, low, high);
    const int64_t count = std::min<int64_t>(__builtin_popcount(taken), room - written);
    const uint32_t lanes_taken = (1u << count) - 1;
    _mm512_mask_storeu_epi64(out + written, __mmask8(lanes_taken), low);
    _mm512_mask_storeu_epi64(out + written + 8, __mmask8(lanes_taken >> 8), high);
    written += count;
  }
  return written;
}

int64_t compact(const float* scores, int64_t n, float threshold, Ties ties, int64_t first,
                int64_t* out, int64_t room) {
  return ties == Ties::kAll ? compact_where<_CMP_GE_OQ>(scores, n, threshold, first, out, room)
                            : compact_where<_CMP_GT_OQ>(scores, n, threshold, first, out, room);
}

}  // namespace

SelectKernels select_kernels_avx512() {
  return {collect, count_at_least, plain::Kernels<3>::lowest_at_least, compact};
}

}  // namespace emp
