// A random order of ids.
#pragma once

#include <cstdint>

namespace emp {

// Writes `ids` (n,) to out (n,) in a random order that depends on n and `seed` alone, the same on
// every machine and for every number of threads; n < 2^32 - 2^17. out must not overlap ids.
//
// Up to 2^16 ids are shuffled by Fisher-Yates inside out: place p draws a 32-bit lane of the
// splitmix64 stream `seed + 1`, and its id is swapped with that of one of the places [0, p]. Every
// order is equally likely, as far as the stream is random.
//
// With more ids each swap would wait for a cache miss and for the previous swap. There place p gets
// the id at P(p), P being a keyed pseudo-random permutation of [0, n) that is computed
// independently for each place (permuted_places.h). Round r's key is the lowest three 16-bit lanes
// of element r of the stream `seed`: a term and two factors, which are made odd.
void shuffle(const int64_t* ids, int64_t n, uint64_t seed, int64_t* out, int threads);

// out[i] = shuffle(0, 1, 2, ...)[places[i]] for `places` (count,) in [0, n); an order of more than
// 2^16 ids is not materialised. out may be places.
void shuffled_at(int64_t n, uint64_t seed, const int64_t* places, int64_t count, int64_t* out,
                 int threads);

}  // namespace emp
