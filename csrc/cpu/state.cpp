#include "state.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "racing.h"
#include "threads.h"

namespace emp {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

bool is_valid(float score, float loss, float entropy) {
  return (score > -kInf) & (std::fabs(loss) < kInf) & (std::fabs(entropy) < kInf);
}

// One row, read once.
struct Entry {
  float score, loss, entropy;

  EMP_MAY_RACE Entry(const ScoredRows& s, int64_t row)
      : score(read_once(s.score + row)),
        loss(read_once(s.loss + row)),
        entropy(read_once(s.entropy + row)) {}
  bool valid() const { return is_valid(score, loss, entropy); }
};

bool any_valid(const ScoredRows& s) {
  for (int64_t row = 0; row < s.rows; ++row)
    if (Entry(s, row).valid()) return true;
  return false;
}

// Rows [begin, end), row i at sample i. Branchless, so that the compiler vectorises it.
EMP_MAY_RACE void write_range(const State& state, int32_t now, const ScoredRows& s, int64_t begin,
                              int64_t end) {
  float *const score = state.score, *const loss = state.loss, *const entropy = state.entropy;
  int32_t *const updates = state.updates, *const seen_at = state.seen_at;
#pragma omp simd
  for (int64_t row = begin; row < end; ++row) {
    const float row_score = s.score[row], row_loss = s.loss[row], row_entropy = s.entropy[row];
    const bool write = is_valid(row_score, row_loss, row_entropy);
    score[row] = write ? row_score : score[row];
    loss[row] = write ? row_loss : loss[row];
    entropy[row] = write ? row_entropy : entropy[row];
    seen_at[row] = write ? now : seen_at[row];
    updates[row] += write;
  }
}

// From the last row to the first: an id with this call's clock was already written by a later row.
EMP_MAY_RACE int64_t write_at_ids(const State& state, int32_t now, const ScoredRows& s) {
  int64_t bad = -1;
  for (int64_t row = s.rows - 1; row >= 0; --row) {
    const Entry entry(s, row);
    if (!entry.valid()) continue;
    const int64_t id = read_once(s.ids + row);
    if (uint64_t(id) >= uint64_t(state.size)) {
      bad = row;
      continue;
    }
    if (state.seen_at[id] == now) continue;
    state.seen_at[id] = now;
    state.score[id] = entry.score;
    state.loss[id] = entry.loss;
    state.entropy[id] = entry.entropy;
    ++state.updates[id];
  }
  return bad;
}

template <class Id>
int64_t log_each(const Labels& ids, int64_t rows, int64_t size, Id* log) {
  int64_t bad = -1;
  for_each_label(ids, 0, rows, [&](int64_t row, int64_t id) {
    if (uint64_t(id) >= uint64_t(size) && bad < 0) bad = row;
    log[row] = Id(id);
  });
  return bad;
}

}  // namespace

int64_t log_ids(const Labels& ids, int64_t rows, int64_t size, int32_t* log) {
  return log_each(ids, rows, size, log);
}

int64_t log_ids(const Labels& ids, int64_t rows, int64_t size, int64_t* log) {
  return log_each(ids, rows, size, log);
}

int64_t update_state(const State& state, const ScoredRows& scored, int threads) {
  const StandardFloats mode;
  if (!any_valid(scored)) return -1;
  const int32_t now = __atomic_add_fetch(state.clock, 1, __ATOMIC_RELAXED);
  if (scored.ids != nullptr) return write_at_ids(state, now, scored);
  constexpr int64_t kRows = 4096, kRowBytes = 32;
  parallel_tasks(useful_threads(threads, kRowBytes * scored.rows),
                 (scored.rows + kRows - 1) / kRows, [&](int64_t task, int) {
                   const int64_t end = std::min(scored.rows, (task + 1) * kRows);
                   write_range(state, now, scored, task * kRows, end);
                 });
  return -1;
}

EMP_MAY_RACE void count_selections(const State& state, const int64_t* indices, int64_t count,
                                   const int64_t* ids) {
  for (int64_t k = 0; k < count; ++k) {
    const int64_t id = ids == nullptr ? indices[k] : read_once(ids + indices[k]);
    if (uint64_t(id) < uint64_t(state.size)) ++state.selections[id];
  }
}

}  // namespace emp
