// Labels of rows, of any integer type.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dtypes.h"

namespace emp {

// Labels (rows,), contiguous. A row whose label is `ignored` is not read. Another thread may write
// labels concurrently: a pass reads each once, and checks the value that it uses.
struct Labels {
  const void* data;
  IntDtype dtype;
  bool has_ignored;
  int64_t ignored;

  bool ignores(int64_t label) const { return has_ignored && label == ignored; }
};

// Labels of rows [begin, end). Row loops get their labels in blocks through this function, instead
// of being compiled for eight types.
void read_labels(const Labels& labels, int64_t begin, int64_t end, int64_t* out);

// First row whose label is neither ignored nor in [0, classes), or -1.
int64_t first_bad_label(const Labels& labels, int64_t rows, int64_t classes);

// Calls f(row, its label) for rows [begin, end).
template <class Function>
[[gnu::always_inline]] inline void for_each_label(const Labels& labels, int64_t begin, int64_t end,
                                                  Function&& f) {
  constexpr int64_t kBlock = 64;
  int64_t block[kBlock];
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t stop = std::min(start + kBlock, end);
    read_labels(labels, start, stop, block);
    for (int64_t row = start; row < stop; ++row) f(row, block[row - start]);
  }
}

}  // namespace emp
