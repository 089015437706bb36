#include "tokens.h"

#include <vector>

#include "selection.h"
#include "threads.h"

namespace emp {

int64_t select_rows(const float* scores, int64_t rows, int64_t width, const int64_t* counts,
                    int64_t* out, int threads) {
  std::vector<int64_t> starts(size_t(rows) + 1, 0);
  for (int64_t row = 0; row < rows; ++row)
    starts[size_t(row) + 1] = starts[size_t(row)] + counts[row];
  const auto select_row = [&](int64_t row, int inner_threads) {
    int64_t* to = out + starts[size_t(row)];
    select(scores + row * width, width, counts[row], to, inner_threads);
    for (int64_t i = 0; i < counts[row]; ++i) to[i] += row * width;
  };
  const int useful = useful_threads(threads, rows * width * int64_t(sizeof(float)));
  if (rows < 2 * useful) {  // few long rows: all threads work on each
    for (int64_t row = 0; row < rows; ++row) select_row(row, threads);
  } else {
    parallel_tasks(useful, rows, [&](int64_t row, int) { select_row(row, 1); });
  }
  return starts[size_t(rows)];
}

}  // namespace emp
