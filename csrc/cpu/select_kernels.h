// The passes over the scores that make up selection, one set per target.
#pragma once

#include <cstdint>
#include <cstring>

#include "racing.h"

namespace emp {

// Which scores equal to the threshold a run takes.
enum class Ties { kNone, kAll };

// Scores may change while `collect` and `compact` read them; each score is read once per pass.
struct SelectKernels {
  // Counts scores above `high` and writes those in [low, high] to candidates (capacity n + 16).
  // Returns {above, written}. A NaN is neither.
  struct Collected {
    int64_t above, written;
  };
  Collected (*collect)(const float* scores, int64_t n, float low, float high, float* candidates);
  // Number of scores >= bound.
  int64_t (*count_at_least)(const float* scores, int64_t n, float bound);
  // The lowest score >= bound, +inf where there is none; +0 for -0.
  float (*lowest_at_least)(const float* scores, int64_t n, float bound);
  // Writes first + i to out for each of the n scores above the threshold, and with Ties::kAll also
  // for those equal to it, and returns the number written, at most `room`. n < 2^31.
  int64_t (*compact)(const float* scores, int64_t n, float threshold, Ties ties, int64_t first,
                     int64_t* out, int64_t room);
};

SelectKernels select_kernels_avx512();
SelectKernels select_kernels_avx2();
SelectKernels select_kernels_portable();

namespace plain {

// Branchless scalar loops, compiled once per target that uses them. `Target` makes the copies
// distinct.
template <int kTarget>
struct Kernels {
  EMP_MAY_RACE static SelectKernels::Collected collect(const float* scores, int64_t n, float low,
                                                       float high, float* candidates) {
    int64_t above = 0, written = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float s = read_once(scores + i);
      candidates[written] = s;
      written += (s >= low) & (s <= high);
      above += s > high;
    }
    return {above, written};
  }
  static int64_t count_at_least(const float* scores, int64_t n, float bound) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) count += scores[i] >= bound;
    return count;
  }
  // By integers that compare as floats do: their minimum is vectorised.
  static float lowest_at_least(const float* scores, int64_t n, float bound) {
    int32_t lowest = 0x7f800000;  // +inf
    for (int64_t i = 0; i < n; ++i) {
      int32_t key;
      std::memcpy(&key, scores + i, 4);
      key ^= (key >> 31) & 0x7fffffff;
      key = scores[i] >= bound ? key : 0x7f800000;
      lowest = key < lowest ? key : lowest;
    }
    if (lowest == -1) return 0.0f;  // -0
    lowest ^= (lowest >> 31) & 0x7fffffff;
    float found;
    std::memcpy(&found, &lowest, 4);
    return found;
  }
  EMP_MAY_RACE static int64_t compact(const float* scores, int64_t n, float threshold, Ties ties,
                                      int64_t first, int64_t* out, int64_t room) {
    int64_t written = 0;
    for (int64_t i = 0; i < n && written < room; ++i) {
      const float s = read_once(scores + i);
      out[written] = first + i;
      written += (s > threshold) | ((s == threshold) & (ties == Ties::kAll));
    }
    return written;
  }
  static SelectKernels all() { return {collect, count_at_least, lowest_at_least, compact}; }
};

}  // namespace plain
}  // namespace emp
