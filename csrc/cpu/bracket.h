// Where the k-th highest of some scores lies, found by counting.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "memory.h"
#include "racing.h"
#include "select_kernels.h"

namespace emp {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int64_t kManyScores = 1 << 22;  // from this many on, larger samples and chunks

// Order-preserving map between floats that are not NaN and integers; -0 becomes +0.
inline uint32_t key_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (bits == 0x80000000u) bits = 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
inline float float_of(uint32_t key) {
  const uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
constexpr uint32_t kMinusZeroKey = 0x7fffffffu;
inline float next_above(float x) { return float_of(key_of(x) + 1); }

// A float <= the k-th highest score and above all lower ones, given that at least k of the scores
// reach `low` and at most k - 1 exceed `high`.
template <class CountAtLeast>
float bisect(uint32_t low, uint32_t high, int64_t k, CountAtLeast&& count_at_least) {
  while (low < high) {
    const uint32_t middle = low + (high - low + 1) / 2;
    const int64_t count = count_at_least(float_of(middle));
    if (count == k) return float_of(middle);
    if (count > k)
      low = middle;
    else
      high = middle - 1;
  }
  return float_of(low);
}

// splitmix64's finaliser, used as a hash.
inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

struct Bracket {
  float low, high;
};

// Bounds that contain the k-th of n scores with near certainty (five standard deviations of the
// sample's rank), from one score at a pseudo-random position in each of `size` equal strata.
EMP_MAY_RACE inline Bracket sample_bracket(const SelectKernels& run, const float* scores, int64_t n,
                                           int64_t k) {
  const int64_t size = n < kManyScores ? 8192 : 65536;
  const std::unique_ptr<float[]> sample = allocate<float>(size);
  const double stratum = double(n) / double(size);
  for (int64_t i = 0; i < size; ++i) {
    const double offset = double(mix(uint64_t(i) + 1) >> 11) * 0x1p-53;
    const float s = read_once(scores + std::min(n - 1, int64_t((double(i) + offset) * stratum)));
    sample[i] = s == s ? s : -kInf;
  }
  const double share = double(k) / double(n), rank = share * double(size);
  const double margin = 5 * std::sqrt(rank * (1 - share)) + 2;
  const auto at_rank = [&](int64_t r) {  // r-th highest of the sample
    return bisect(key_of(-kInf), key_of(kInf), r,
                  [&](float bound) { return run.count_at_least(sample.get(), size, bound); });
  };
  const int64_t high_rank = int64_t(rank - margin), low_rank = int64_t(rank + margin) + 1;
  return {low_rank > size ? -kInf : at_rank(low_rank), high_rank < 1 ? kInf : at_rank(high_rank)};
}

}  // namespace emp
