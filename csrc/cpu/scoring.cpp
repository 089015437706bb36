#include "scoring.h"

#include <atomic>

#include "score_rows.h"
#include "targets.h"
#include "threads.h"

namespace emp {
namespace {

RowScorers scorers(LogitDtype dtype) {
#if EMP_X86
  if (target() == Target::kAvx512) return row_scorers_avx512(dtype);
  if (target() == Target::kAvx2) return row_scorers_avx2(dtype);
#endif
  return row_scorers_portable(dtype);
}

// Calls body(begin, end) over all rows, in tasks of about 256 KB of logits, of whole blocks of rows
// if there are enough for all threads.
template <class Body>
void for_row_ranges(const Logits& logits, int threads, Body&& body) {
  const int64_t rows = logits.rows, row_bytes = std::max<int64_t>(1, logits.bytes() / rows);
  threads = useful_threads(threads, logits.bytes() + 16 * rows);
  int64_t step = rows;
  if (threads > 1) {
    step = std::clamp<int64_t>((256 * 1024) / row_bytes / 16 * 16, 16, 4096);
    step = std::min(step, (rows + threads - 1) / threads);
  }
  parallel_tasks(threads, (rows + step - 1) / step,
                 [&](int64_t task, int) { body(task * step, std::min(rows, (task + 1) * step)); });
}

// The lowest row that any task reports.
class FirstRow {
 public:
  void add(int64_t row) {
    int64_t first = first_.load(std::memory_order_relaxed);
    while (row >= 0 && row < first && !first_.compare_exchange_weak(first, row)) {
    }
  }
  int64_t row() const { return first_ == kNone ? -1 : first_.load(); }

 private:
  static constexpr int64_t kNone = INT64_MAX;
  std::atomic<int64_t> first_{kNone};
};

}  // namespace

RowCounts score(const Logits& logits, const Labels& labels, float beta, const ScoreOutputs& out,
                int threads) {
  if (logits.rows == 0) return {};
  const auto score_rows = scorers(logits.dtype).score;
  std::atomic<int64_t> valid{0}, invalid{0};
  FirstRow bad_label;
  for_row_ranges(logits, threads, [&](int64_t begin, int64_t end) {
    const RowCounts counts = score_rows(logits, labels, beta, out, begin, end);
    valid += counts.valid;
    invalid += counts.invalid;
    bad_label.add(counts.bad_label);
  });
  return {valid, invalid, bad_label.row()};
}

int64_t sample_statistics(const Logits& logits, const Labels& labels, const StatisticOutputs& out,
                          int threads) {
  if (logits.rows == 0) return -1;
  FirstRow bad_label;
  const auto row_statistics = scorers(logits.dtype).statistics;
  for_row_ranges(logits, threads, [&](int64_t begin, int64_t end) {
    bad_label.add(row_statistics(logits, labels, out, begin, end));
  });
  return bad_label.row();
}

void row_sums(const Logits& logits, const Labels& labels, const SumOutputs& out, int threads) {
  if (logits.rows == 0) return;
  const auto sums = scorers(logits.dtype).sums;
  for_row_ranges(logits, threads,
                 [&](int64_t begin, int64_t end) { sums(logits, labels, out, begin, end); });
}

}  // namespace emp
