#include "shuffle.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "permuted_places.h"
#include "targets.h"
#include "threads.h"

namespace emp {
namespace {

constexpr int64_t kMostShuffled = 1 << 16;  // 512 KB of ids

// Element i of the splitmix64 stream `seed`.
uint64_t draw(uint64_t seed, uint64_t i) {
  uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Calls f(place, 32 random bits) for places [place, end); place is even.
template <class F>
[[gnu::always_inline]] inline void each_random(uint64_t seed, int64_t place, int64_t end, F&& f) {
  for (; place + 2 <= end; place += 2) {
    const uint64_t word = draw(seed + 1, uint64_t(place) / 2);
    f(place, uint64_t(uint32_t(word)));
    f(place + 1, word >> 32);
  }
  if (place < end) f(place, uint64_t(uint32_t(draw(seed + 1, uint64_t(place) / 2))));
}

// Each place's swap partner does not depend on the ids: threads compute the partners in parallel,
// then one of them performs the swaps.
void shuffle_few(const int64_t* ids, int64_t n, uint64_t seed, int64_t* out, int threads) {
  constexpr int64_t kStep = 1 << 14;
  parallel_tasks(useful_threads(threads, 16 * n), (n + kStep - 1) / kStep, [&](int64_t task, int) {
    each_random(seed, task * kStep, std::min(n, (task + 1) * kStep),
                [=](int64_t place, uint64_t random) {
                  out[place] = int64_t(random * uint64_t(place + 1) >> 32);
                });
  });
  for (int64_t place = 0; place < n; ++place) {
    const int64_t other = out[place];
    out[place] = out[other];
    out[other] = ids[place];
  }
}

Permutation permutation_of(int64_t n, uint64_t seed) {
  Permutation p;
  int64_t rows = kPlacesBlock;
  while (rows * rows < n) ++rows;
  p.n = uint32_t(n);
  p.rows = uint16_t(rows);
  p.columns = uint16_t((n + rows - 1) / rows);
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t word = draw(seed, uint64_t(round));
    p.keys[round] = {uint16_t(word >> 16 | 1), uint16_t(word), uint16_t(word >> 32 | 1)};
  }
  return p;
}

PermutedPlaces permuted_places() {
#if EMP_X86
  if (target() == Target::kAvx512) return permuted_places_avx512();
  if (target() == Target::kAvx2) return permuted_places_avx2();
#endif
  return permuted_places_portable();
}

void shuffle_many(const int64_t* ids, int64_t n, uint64_t seed, int64_t* out, int threads) {
  constexpr int64_t kStep = 1 << 14;
  const Permutation permutation = permutation_of(n, seed);
  const PermutedPlaces permuted = permuted_places();
  parallel_tasks(useful_threads(threads, 16 * n), (n + kStep - 1) / kStep, [&](int64_t task, int) {
    const int64_t end = std::min(n, (task + 1) * kStep);
    uint32_t places[kPlacesBlock];
    for (int64_t i = task * kStep; i < end; i += kPlacesBlock) {
      const int64_t count = std::min<int64_t>(kPlacesBlock, end - i);
      permuted(permutation, uint32_t(i), uint32_t(count), places);
      for (int64_t j = 0; j < count; ++j) out[i + j] = ids[places[j]];
    }
  });
}

}  // namespace

void shuffle(const int64_t* ids, int64_t n, uint64_t seed, int64_t* out, int threads) {
  (n <= kMostShuffled ? shuffle_few : shuffle_many)(ids, n, seed, out, threads);
}

void shuffled_at(int64_t n, uint64_t seed, const int64_t* places, int64_t count, int64_t* out,
                 int threads) {
  if (n <= kMostShuffled) {
    std::vector<int64_t> positions(n), order(n);
    std::iota(positions.begin(), positions.end(), 0);
    shuffle_few(positions.data(), n, seed, order.data(), 1);
    for (int64_t i = 0; i < count; ++i) out[i] = order[size_t(places[i])];
    return;
  }
  constexpr int64_t kStep = 1 << 12;
  const Permutation permutation = permutation_of(n, seed);
  parallel_tasks(useful_threads(threads, 64 * count), (count + kStep - 1) / kStep,
                 [&](int64_t task, int) {
                   const int64_t end = std::min(count, (task + 1) * kStep);
                   for (int64_t i = task * kStep; i < end; ++i)
                     out[i] = Places<0>::at(permutation, uint32_t(places[i]));
                 });
}

}  // namespace emp
