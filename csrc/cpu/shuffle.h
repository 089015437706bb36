// A random order of ids.
#pragma once

#include <cstdint>

namespace emp {

// Writes `ids` (n,) to out (n,) in a random order that depends on n and `seed` alone, the same on
// every machine and for every number of threads; n < 2^32. out must not overlap ids.
//
// Fewer than 2^19 ids are shuffled by Fisher-Yates inside out: place p draws a 32-bit lane of the
// splitmix64 stream `seed + 1`, and its id changes places with that of one of the places [0, p].
// More would miss the caches, so before that (Rao-Sandelius) each position draws one of 2^b buckets
// of 2048 to 4096 ids (b <= 8: an 8-bit lane of the stream `seed`; b <= 16: a 16-bit lane; its
// highest b bits count), and each bucket is shuffled by itself. Every order is equally likely as
// far as the streams are random, and but for 2^-13 of a place's share.
void shuffle(const int64_t* ids, int64_t n, uint64_t seed, int64_t* out, int threads);

}  // namespace emp
