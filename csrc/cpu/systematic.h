// Systematic sampling: one draw for every `whole` / `left` units along a line.
#pragma once

#include <cstdint>

namespace emp {

// Items are laid side by side in the order `order` (n,), a permutation of [0, n); item i has length
// `units[i]` >= 0, `whole` in total. Sets drawn[i] for each item that contains one of the `left`
// marks: mark k >= 1 is the first point c with c * left + first >= k * whole. For `first` uniform
// in [0, whole) an item no longer than whole / left is drawn with probability units[i] * left /
// whole, and exactly `left` items are drawn. whole * (left + 1) < 2^63; other elements of `drawn`
// are not changed.
void systematic(const int64_t* units, const int64_t* order, int64_t n, int64_t left, int64_t whole,
                int64_t first, bool* drawn);

}  // namespace emp
