// A random order of ids.
#pragma once

#include <cstdint>

namespace emp {

// Writes `ids` (n,) to out (n,) in a random order that depends on n and `seed` alone, the same on
// every machine and for every number of threads; n < 2^32. out must not overlap ids.
//
// Rao-Sandelius: each position draws one of 2^b buckets of 2048 to 4096 ids (b <= 8: an 8-bit lane
// of the splitmix64 stream `seed`; b <= 16: a 16-bit lane; its highest b bits count), ids keep
// their order within a bucket, and each bucket is shuffled by Fisher-Yates in the first-level
// cache, from its end (place p draws a 32-bit lane of the stream `seed + 1`). Every order is
// equally likely as far as the streams are random.
void shuffle(const int64_t* ids, int64_t n, uint64_t seed, int64_t* out, int threads);

}  // namespace emp
