#include "shuffle.h"

#include <algorithm>
#include <vector>

#include "threads.h"

namespace emp {
namespace {

constexpr int64_t kBucketIds = 2048;     // 16 KB
constexpr int64_t kOneBucket = 1 << 19;  // 4 MB: from here on a cache misses too often
constexpr int kMostBits = 16;            // of a bucket's number: the widest lane

// Element i of the splitmix64 stream `seed`.
uint64_t draw(uint64_t seed, uint64_t i) {
  uint64_t z = seed + (i + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

int bucket_bits(int64_t n) {
  if (n < kOneBucket) return 0;
  int bits = 0;
  while (bits < kMostBits && (n >> (bits + 1)) >= kBucketIds) ++bits;
  return bits;
}

// Calls f(position, bucket) for positions [begin, end); begin is a multiple of 8.
template <int kLaneBits, class F>
[[gnu::always_inline]] inline void each_bucket(uint64_t seed, int bits, int64_t begin, int64_t end,
                                               F&& f) {
  constexpr int kLanes = 64 / kLaneBits;
  constexpr uint64_t kLane = (uint64_t(1) << kLaneBits) - 1;
  const int unused = kLaneBits - bits;
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    const uint64_t word = draw(seed, uint64_t(i / kLanes));
    for (int lane = 0; lane < kLanes; ++lane)
      f(i + lane, uint32_t(word >> (kLaneBits * lane) & kLane) >> unused);
  }
  const uint64_t word = draw(seed, uint64_t(i / kLanes));
  for (int lane = 0; i + lane < end; ++lane)
    f(i + lane, uint32_t(word >> (kLaneBits * lane) & kLane) >> unused);
}
template <class F>
void for_each_bucket(uint64_t seed, int bits, int64_t begin, int64_t end, F&& f) {
  if (bits <= 8)
    each_bucket<8>(seed, bits, begin, end, f);
  else
    each_bucket<16>(seed, bits, begin, end, f);
}

// Calls f(place, 32 random bits) for places [place, end).
template <class F>
[[gnu::always_inline]] inline void each_random(uint64_t seed, int64_t place, int64_t end, F&& f) {
  if (place % 2 && place < end) {
    f(place, draw(seed + 1, uint64_t(place) / 2) >> 32);
    ++place;
  }
  for (; place + 2 <= end; place += 2) {
    const uint64_t word = draw(seed + 1, uint64_t(place) / 2);
    f(place, uint64_t(uint32_t(word)));
    f(place + 1, word >> 32);
  }
  if (place < end) f(place, uint64_t(uint32_t(draw(seed + 1, uint64_t(place) / 2))));
}

// One bucket of all ids. Where each place's partner is does not depend on the ids: threads write it
// into the places, which one of them then fills.
void shuffle_whole(const int64_t* ids, int64_t n, uint64_t seed, int64_t* out, int threads) {
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

// A bucket's ids in [begin, end), where they are.
void shuffle_bucket(uint64_t seed, int64_t begin, int64_t end, int64_t* out) {
  each_random(seed, begin, end, [=](int64_t place, uint64_t random) {
    std::swap(out[place], out[begin + int64_t(random * uint64_t(place - begin + 1) >> 32)]);
  });
}

}  // namespace

void shuffle(const int64_t* ids, int64_t n, uint64_t seed, int64_t* out, int threads) {
  const int bits = bucket_bits(n);
  if (bits == 0) return shuffle_whole(ids, n, seed, out, threads);
  const int64_t buckets = int64_t(1) << bits;
  threads = useful_threads(threads, 16 * n);
  // Each part of the positions counts its buckets, learns where its ids go, and moves them.
  const int64_t parts = threads, step = (n + 8 * parts - 1) / (8 * parts) * 8;
  std::vector<uint32_t> places(size_t(parts * buckets));
  std::vector<int64_t> starts(size_t(buckets + 1));
  parallel_tasks(threads, parts, [&](int64_t part, int) {
    uint32_t* count = &places[size_t(part * buckets)];
    for_each_bucket(seed, bits, part * step, std::min(n, (part + 1) * step),
                    [=](int64_t, uint32_t bucket) { ++count[bucket]; });
  });
  int64_t place = 0;
  for (int64_t bucket = 0; bucket < buckets; ++bucket) {
    starts[size_t(bucket)] = place;
    for (int64_t part = 0; part < parts; ++part) {
      uint32_t& count = places[size_t(part * buckets + bucket)];
      const uint32_t here = count;
      count = uint32_t(place);
      place += here;
    }
  }
  starts[size_t(buckets)] = n;
  parallel_tasks(threads, parts, [&](int64_t part, int) {
    uint32_t* next = &places[size_t(part * buckets)];
    for_each_bucket(seed, bits, part * step, std::min(n, (part + 1) * step),
                    [=](int64_t i, uint32_t bucket) { out[next[bucket]++] = ids[i]; });
  });
  constexpr int64_t kTogether = 8;  // buckets a task
  parallel_tasks(threads, (buckets + kTogether - 1) / kTogether, [&](int64_t task, int) {
    const int64_t last = std::min(buckets, (task + 1) * kTogether);
    for (int64_t bucket = task * kTogether; bucket < last; ++bucket)
      shuffle_bucket(seed, starts[size_t(bucket)], starts[size_t(bucket + 1)], out);
  });
}

}  // namespace emp
