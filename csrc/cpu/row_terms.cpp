#include "row_terms.h"

#include <algorithm>

#include "pages.h"
#include "targets.h"
#include "term_rows.h"
#include "threads.h"

namespace emp {
namespace {

TermRowKernels kernels() {
#if EMP_X86
  if (target() == Target::kAvx512) return term_row_kernels_avx512();
  if (target() == Target::kAvx2) return term_row_kernels_avx2();
#endif
  return term_row_kernels_portable();
}

constexpr int64_t kLargeBytes = 64 << 20;  // read and written bytes that exceed the caches
constexpr int64_t kGradientTask = 8
                                  << 20;  // a few huge pages: usually one thread touches one first

// Calls body(begin, end) over all rows, in tasks of about `task_bytes`.
template <class Body>
void for_tasks(const Logits& logits, int64_t bytes, int64_t task_bytes, int threads, Body&& body) {
  const int64_t rows = logits.rows, row_bytes = std::max<int64_t>(1, logits.bytes() / rows);
  threads = useful_threads(threads, bytes);
  int64_t step = std::max<int64_t>(1, task_bytes / row_bytes);
  step = threads > 1 ? std::min(step, (rows + threads - 1) / threads) : rows;
  parallel_tasks(threads, (rows + step - 1) / step,
                 [&](int64_t task, int) { body(task * step, std::min(rows, (task + 1) * step)); });
}

}  // namespace

int64_t row_terms(const Logits& logits, const Labels& labels, const Adjustment& adjustment,
                  const TargetWeights& targets, const TermOutputs& out, int threads) {
  if (logits.rows == 0) return -1;
  const auto terms = kernels().terms;
  std::atomic<int64_t> bad{INT64_MAX};
  for_tasks(logits, 2 * logits.bytes(), 256 * 1024, threads, [&](int64_t begin, int64_t end) {
    const int64_t found = terms(logits, labels, adjustment, targets, out, begin, end);
    int64_t first = bad.load(std::memory_order_relaxed);
    while (found >= 0 && found < first && !bad.compare_exchange_weak(first, found)) {
    }
  });
  return bad == INT64_MAX ? -1 : bad.load();
}

void row_terms_backward(const Logits& logits, const Labels& labels, const Adjustment& adjustment,
                        const TargetWeights& targets, const TermGradients& gradients, void* out,
                        int threads) {
  const int64_t bytes = logits.bytes();
  if (bytes == 0) return;
  int64_t touched = 2 * bytes;
  if (targets.has_probabilities()) touched += targets.probabilities.bytes();
  const bool stream = touched >= kLargeBytes;
  prefer_huge_pages(out, bytes);
  const auto gradient = kernels().gradient;
  for_tasks(logits, touched, kGradientTask, threads, [&](int64_t begin, int64_t end) {
    gradient(logits, labels, adjustment, targets, gradients, out, stream, begin, end);
  });
}

void row_terms_with_gradient(const Logits& logits, const Adjustment& adjustment,
                             const TargetWeights& targets, float scale, const TermOutputs& terms,
                             void* out, int threads) {
  const int64_t bytes = logits.bytes();
  if (logits.rows == 0) return;
  const int64_t touched = 2 * bytes + targets.probabilities.bytes();
  const bool stream = touched >= kLargeBytes;
  if (bytes > 0) prefer_huge_pages(out, bytes);
  const auto both = kernels().both;
  for_tasks(logits, touched, kGradientTask, threads, [&](int64_t begin, int64_t end) {
    both(logits, adjustment, targets, scale, terms, out, stream, begin, end);
  });
}

}  // namespace emp
