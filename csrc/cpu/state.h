// Writing scores into the per-sample state.
#pragma once

#include <cstdint>

namespace emp {

// The state's arrays, each (size,), and its clock, which counts the calls that wrote into it.
struct State {
  float *score, *loss, *entropy;
  int32_t *updates, *selections, *seen_at, *clock;
  int64_t size;
};

// Scores of rows; `ids` (rows,) int64, or null for row i being sample i.
struct ScoredRows {
  const float *score, *loss, *entropy;
  const int64_t* ids;
  int64_t rows;
};

// Writes the valid rows (score neither NaN nor -inf, loss and entropy finite) at their ids, which
// must be in range. A duplicate id keeps its last valid row and counts one update. Each written
// id's seen_at becomes the clock, which is advanced first when anything is written. `threads` share
// the work without ids; with them it is done in order, by one.
void update_state(const State& state, const ScoredRows& scored, int threads);

// Counts the selection of rows `indices` (count,).
void count_selections(const State& state, const int64_t* indices, int64_t count,
                      const int64_t* ids);

}  // namespace emp
