// Shared by all fuzzed cases: adversarial random numbers, floating-point modes of the caller, and
// threads that write concurrently.
#pragma once

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cases.h"
#include "cpu/racing.h"
#include "float_mode.h"

inline const char* program = "";
inline uint64_t seed = 0;
inline int64_t number = 0;  // of the running case
inline std::map<std::string, int64_t> counts;

inline void tell_command() {
  std::printf("  again: EMP_SIMD=%s %s 0 %" PRIu64 " %" PRId64 "\n",
              emp::target_name(emp::target()), program, seed, number);
  std::fflush(stdout);
}

class Case {
 public:
  Case() : random_(seed * 1000003 + uint64_t(number)), flushed_(below(3) == 0), mode_(below(4)) {}

  int64_t below(int64_t end) { return int64_t(random_() % uint64_t(end)); }
  template <class T>
  T one_of(std::initializer_list<T> choices) {
    return choices.begin()[below(int64_t(choices.size()))];
  }
  float normal() { return normal_(random_); }

  // One of several distributions that are hard for selection.
  float score(int64_t kind) {
    switch (kind) {
      case 0:
        return normal();
      case 1:
        return float(below(3) - 1);
      case 2:
        return of_bits(uint32_t(below(2)) << 31);
      case 3:  // subnormal numbers
        return of_bits(uint32_t(below(2) << 31 | below(3)));
      case 4:  // around the smallest normal number
        return of_bits(uint32_t(0x7ffffe + below(5)));
      case 5:  // with NaNs and infinities
        return of_bits(uint32_t(random_()));
      case 6:
        return below(10) == 0 ? normal() : kNaN;
      default:
        return one_of({kInf, -kInf, 0.0f, 1.0f});
    }
  }
  std::unique_ptr<float[]> scores(int64_t n) {
    auto values = exactly<float>(n);
    const int64_t first = below(8), second = below(8), cut = below(3) == 0 ? below(n + 1) : n;
    for (int64_t i = 0; i < n; ++i) values[i] = score(i < cut ? first : second);
    if (below(4) == 0)
      std::sort(values.get(), values.get() + n, [](float a, float b) { return key(a) < key(b); });
    return values;
  }
  // Mostly few; the others are near the ends of vectors, blocks and chunks.
  int64_t size() {
    const int64_t kind = below(2000);
    if (kind < 1600) return 1 + below(300);
    if (kind < 1980) return one_of<int64_t>({1, 8, 16, 64, 256, 1024, 2048, 4096}) + below(3) - 1;
    if (kind < 1999) return one_of<int64_t>({16384, 32768, 49152, 65536}) + below(3) - 1;
    return (1 << 22) + below(3) - 1;
  }
  // How many of n to select.
  int64_t part(int64_t n) { return one_of({int64_t(0), std::min<int64_t>(1, n), n, below(n + 1)}); }

  // Numbers whose order is that of the scores.
  static uint32_t key(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0;
    if (bits == 0x80000000u) bits = 0;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  }

  // Runs `call` under a floating-point mode that its caller may have set.
  template <class Call>
  auto run(Call&& call) {
    constexpr int kRoundings[] = {FE_TONEAREST, FE_TONEAREST, FE_UPWARD, FE_DOWNWARD};
    const FloatMode mode(flushed_, kRoundings[mode_]);
    return call();
  }
  void count(const char* what, int64_t many = 1) {
    counts[what] += many;
    if (flushed_) counts[std::string(what) + " under flush_denormal"] += many;
  }

 private:
  static float of_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }
  std::mt19937_64 random_;
  std::normal_distribution<float> normal_;
  bool flushed_;
  int64_t mode_;
};

// Calls `work` repeatedly in other threads while `body` runs.
template <class Work, class Body>
void beside(int threads, Work&& work, Body&& body) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> others;
  for (int thread = 0; thread < threads; ++thread)
    others.emplace_back([&, thread] {
      do work(thread);
      while (!stop.load(std::memory_order_relaxed));
    });
  body();
  stop = true;
  for (std::thread& other : others) other.join();
}

template <class T>
EMP_MAY_RACE void overwrite(T* to, const T* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) *static_cast<volatile T*>(to + i) = from[i];
}

// Ids or labels as another thread overwrites them: some are far out of range.
template <class T>
std::unique_ptr<T[]> spoilt(Case& c, const T* good, int64_t n) {
  auto bad = exactly<T>(n);
  std::copy_n(good, n, bad.get());
  for (int64_t many = 1 + c.below(3); many > 0; --many)
    bad[c.below(n)] = T(c.one_of<int64_t>({-1, INT64_MIN, int64_t(1) << 40, INT64_MAX}));
  return bad;
}

// Positions of n scores from the highest to the lowest.
inline std::vector<int64_t> ranked(const float* scores, int64_t n) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return Case::key(scores[a]) > Case::key(scores[b]);
  });
  return order;
}

// The ascending positions of the k highest of `order`.
inline std::vector<int64_t> highest(const std::vector<int64_t>& order, int64_t k) {
  std::vector<int64_t> positions(order.begin(), order.begin() + k);
  std::sort(positions.begin(), positions.end());
  return positions;
}
