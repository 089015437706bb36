#include "state.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "threads.h"

namespace emp {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

bool writable(const ScoredRows& s, int64_t row) {
  return (s.score[row] > -kInf) & (std::fabs(s.loss[row]) < kInf) &
         (std::fabs(s.entropy[row]) < kInf);
}

void write(const State& state, int32_t now, int64_t id, const ScoredRows& s, int64_t row) {
  state.score[id] = s.score[row];
  state.loss[id] = s.loss[row];
  state.entropy[id] = s.entropy[row];
  ++state.updates[id];
  state.seen_at[id] = now;
}

// Rows [begin, end), each its own id; whether any was written. Without branches, so that the
// compiler vectorises it.
bool write_range(const State& state, int32_t now, const ScoredRows& s, int64_t begin, int64_t end) {
  float *const score = state.score, *const loss = state.loss, *const entropy = state.entropy;
  int32_t *const updates = state.updates, *const seen_at = state.seen_at;
  int32_t written = 0;
#pragma omp simd reduction(| : written)
  for (int64_t row = begin; row < end; ++row) {
    const bool write = writable(s, row);
    score[row] = write ? s.score[row] : score[row];
    loss[row] = write ? s.loss[row] : loss[row];
    entropy[row] = write ? s.entropy[row] : entropy[row];
    seen_at[row] = write ? now : seen_at[row];
    updates[row] += write;
    written |= write;
  }
  return written != 0;
}

// The row number, parked in the bits of two floats of the state that are about to be written.
void park(const State& state, int64_t id, int64_t row) {
  const uint32_t low = uint32_t(row), high = uint32_t(uint64_t(row) >> 32);
  std::memcpy(&state.loss[id], &low, 4);
  std::memcpy(&state.entropy[id], &high, 4);
}
int64_t parked(const State& state, int64_t id) {
  uint32_t low, high;
  std::memcpy(&low, &state.loss[id], 4);
  std::memcpy(&high, &state.entropy[id], 4);
  return int64_t(uint64_t(high) << 32 | low);
}

}  // namespace

void update_state(const State& state, const ScoredRows& scored, int threads) {
  const int32_t now = *state.clock + 1;
  if (scored.ids == nullptr) {
    constexpr int64_t kRows = 4096, kRowBytes = 32;
    std::atomic<bool> written{false};
    parallel_tasks(useful_threads(threads, kRowBytes * scored.rows),
                   (scored.rows + kRows - 1) / kRows, [&](int64_t task, int) {
                     const int64_t end = std::min(scored.rows, (task + 1) * kRows);
                     if (write_range(state, now, scored, task * kRows, end)) written = true;
                   });
    if (written) *state.clock = now;
    return;
  }
  // Each id's last valid row is found in the state itself: no memory, whatever the ids. A row
  // never takes its id's real values for a parked number: these are written by the id's last
  // row, after every other one has looked.
  for (int64_t row = 0; row < scored.rows; ++row)
    if (writable(scored, row)) park(state, scored.ids[row], row);
  for (int64_t row = 0; row < scored.rows; ++row) {
    if (!writable(scored, row) || parked(state, scored.ids[row]) != row) continue;
    write(state, now, scored.ids[row], scored, row);
    *state.clock = now;
  }
}

void count_selections(const State& state, const int64_t* indices, int64_t count,
                      const int64_t* ids) {
  for (int64_t k = 0; k < count; ++k)
    ++state.selections[ids == nullptr ? indices[k] : ids[indices[k]]];
}

}  // namespace emp
