// Writes scores into the per-sample state.
#pragma once

#include <cstdint>

#include "labels.h"

namespace emp {

// The state's arrays, each (size,), and its clock, which counts the calls that wrote into it.
// Other threads may read or write them concurrently: each number is then an old or a new one.
struct State {
  float *score, *loss, *entropy;
  int32_t *updates, *selections, *seen_at, *clock;
  int64_t size;
};

// Scores of rows; `ids` (rows,) int64, or null if row i is sample i.
struct ScoredRows {
  const float *score, *loss, *entropy;
  const int64_t* ids;
  int64_t rows;
};

// Writes the valid rows (score neither NaN nor -inf, loss and entropy finite) at their ids. A
// duplicate id keeps its last valid row and counts one update. Each written id's seen_at becomes
// the clock, which is advanced first if anything is written; no two calls share a clock value.
// Scores must not alias the state. Returns the position of an id out of range, whose row is
// skipped, or -1. `threads` are used only without ids; with ids one thread works in order.
int64_t update_state(const State& state, const ScoredRows& scored, int threads);

// Writes ids (rows,) of any integer type, each in [0, size), to log (rows,). The first position of
// one that is not, behind which anything may have been written, or -1.
int64_t log_ids(const Labels& ids, int64_t rows, int64_t size, int32_t* log);
int64_t log_ids(const Labels& ids, int64_t rows, int64_t size, int64_t* log);

// Counts the selection of rows `indices` (count,); ids out of range are skipped.
void count_selections(const State& state, const int64_t* indices, int64_t count,
                      const int64_t* ids);

}  // namespace emp
