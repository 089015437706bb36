// Exact top-k within each row of a matrix of scores: the tokens of each sequence.
#pragma once

#include <cstdint>

namespace emp {

// Writes the positions (row * width + column) of the counts[row] highest of each row of scores
// (rows, width) to out, ascending, and returns their number, the sum of counts (rows,), each
// 0 <= counts[row] <= width. The order is that of select. out must not alias an input. The result
// does not depend on `threads`.
int64_t select_rows(const float* scores, int64_t rows, int64_t width, const int64_t* counts,
                    int64_t* out, int threads);

}  // namespace emp
