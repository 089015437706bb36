#include <immintrin.h>

#include <array>

#include "select_kernels.h"

namespace emp {
namespace {

using F = __m256;
using Plain = plain::Kernels<2>;
constexpr int kWidth = 8;

// Of each set of lanes its members one after the other, a byte each, lowest first.
constexpr std::array<uint64_t, 256> packed_lanes() {
  std::array<uint64_t, 256> all{};
  for (unsigned set = 0; set < 256; ++set) {
    int shift = 0;
    for (uint64_t lane = 0; lane < kWidth; ++lane)
      if (set & 1u << lane) {
        all[set] |= lane << shift;
        shift += 8;
      }
  }
  return all;
}
constexpr std::array<uint64_t, 256> kPacked = packed_lanes();

unsigned set_of(F lanes) { return unsigned(_mm256_movemask_ps(lanes)); }
__m128i members(unsigned set) { return _mm_cvtsi64_si128(int64_t(kPacked[set])); }

EMP_MAY_RACE SelectKernels::Collected collect(const float* scores, int64_t n, float low, float high,
                                              float* candidates) {
  const F lowest = _mm256_set1_ps(low), highest = _mm256_set1_ps(high);
  int64_t above = 0, written = 0, i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const F s = _mm256_loadu_ps(scores + i);
    const unsigned over = set_of(_mm256_cmp_ps(s, highest, _CMP_GT_OQ));
    const unsigned between = set_of(_mm256_cmp_ps(s, lowest, _CMP_GE_OQ)) & ~over;
    above += __builtin_popcount(over);
    const F packed = _mm256_permutevar8x32_ps(s, _mm256_cvtepu8_epi32(members(between)));
    _mm256_storeu_ps(candidates + written, packed);
    written += __builtin_popcount(between);
  }
  const auto rest = Plain::collect(scores + i, n - i, low, high, candidates + written);
  return {above + rest.above, written + rest.written};
}

template <int kCompare>
EMP_MAY_RACE int64_t compact_where(const float* scores, int64_t n, float threshold, int64_t first,
                                   int64_t* out, int64_t room) {
  const F t = _mm256_set1_ps(threshold);
  int64_t written = 0, i = 0;
  for (; i + kWidth <= n && written < room; i += kWidth) {
    const F s = _mm256_loadu_ps(scores + i);
    unsigned taken = set_of(_mm256_cmp_ps(s, t, kCompare));
    if (written + kWidth <= room) {  // what is written too much is overwritten by what follows
      const __m256i base = _mm256_set1_epi64x(first + i);
      const __m128i lanes = members(taken);
      const auto write = [&](int64_t* to, __m128i four) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                            _mm256_add_epi64(base, _mm256_cvtepu8_epi64(four)));
      };
      write(out + written, lanes);
      write(out + written + 4, _mm_srli_si128(lanes, 4));
      written += __builtin_popcount(taken);
    } else {  // the end of this run's room: another thread may have written behind it
      for (; taken != 0 && written < room; taken &= taken - 1)
        out[written++] = first + i + __builtin_ctz(taken);
    }
  }
  const Ties ties = kCompare == _CMP_GE_OQ ? Ties::kAll : Ties::kNone;
  return written + Plain::compact(scores + i, n - i, threshold, ties, first + i, out + written,
                                  room - written);
}

int64_t compact(const float* scores, int64_t n, float threshold, Ties ties, int64_t first,
                int64_t* out, int64_t room) {
  return ties == Ties::kAll ? compact_where<_CMP_GE_OQ>(scores, n, threshold, first, out, room)
                            : compact_where<_CMP_GT_OQ>(scores, n, threshold, first, out, room);
}

}  // namespace

SelectKernels select_kernels_avx2() {
  return {collect, Plain::count_at_least, Plain::lowest_at_least, compact};
}

}  // namespace emp
