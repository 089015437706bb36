// Exact top-k positions of float32 scores.
#pragma once

#include <cstdint>

namespace emp {

// Writes the ascending positions of the k highest of n scores to out (k,), 0 <= k <= n, and
// returns the k-th score (+inf for k = 0). Ties go to the lowest position, -0 equals +0, NaN ranks
// below -inf. out must not alias the scores. Allocates at most 4 n bytes. The result does not
// depend on `threads`.
float select(const float* scores, int64_t n, int64_t k, int64_t* out, int threads);

}  // namespace emp
