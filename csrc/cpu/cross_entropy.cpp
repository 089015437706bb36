#include "cross_entropy.h"

#include <algorithm>
#include <cstdint>

#include "gathering.h"
#include "gradient_rows.h"
#include "pages.h"
#include "targets.h"
#include "threads.h"

namespace emp {
namespace {

GradientRows kernels(LogitDtype dtype) {
#if EMP_X86
  if (target() == Target::kAvx512) return gradient_rows_avx512(dtype);
  if (target() == Target::kAvx2) return gradient_rows_avx2(dtype);
#endif
  return gradient_rows_portable(dtype);
}

// A gradient of this size exceeds the caches.
constexpr int64_t kLargeBytes = 32 << 20;

}  // namespace

CountedRows cross_entropy(const Logits& logits, const Labels& labels, Reduction reduction,
                          float beta, const State* state, const int64_t* ids,
                          const LossOutputs& out, int threads) {
  const StandardFloats mode;
  const int64_t rows = logits.rows;
  // Score and entropy, which are only written to the state.
  const std::unique_ptr<float[]> remembered = allocate<float>(2 * rows);
  float *const scores = remembered.get(), *const entropy = scores + rows;
  const RowCounts counts =
      score(logits, labels, beta, {scores, out.loss, entropy, out.lse}, threads);
  if (counts.bad_label >= 0) return {0, {counts.bad_label, -1}};
  BadValues bad;
  if (state != nullptr) {
    if (ids != nullptr) bad.id = first_bad_index(ids, rows, state->size);
    if (bad) return {0, bad};
    bad.id = update_state(*state, {scores, out.loss, entropy, ids, rows}, threads);
  }
  const int64_t counted = counts.valid + counts.invalid;
  double total = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const float loss = out.loss[i] + (out.lse[i] - out.lse[i]);
    if (reduction == Reduction::kNone) out.result[i] = loss;
    total += double(loss);
  }
  if (reduction == Reduction::kMean) total /= double(counted);
  if (reduction != Reduction::kNone) *out.result = float(total);
  return {counted, bad};
}

void cross_entropy_backward(const Logits& logits, const Labels& labels,
                            const RowGradients& gradients, void* out, int threads) {
  const int64_t rows = logits.rows, bytes = logits.bytes();
  if (bytes == 0) return;
  const bool large = bytes >= kLargeBytes;
  // A large block may be fresh from the operating system: the page faults of its first touch, 4 KB
  // each, would take longer than the work.
  prefer_huge_pages(out, bytes);
  const GradientRows kernel = kernels(logits.dtype);
  const auto write = large ? kernel.streamed : kernel.cached;
  threads = useful_threads(threads, 2 * bytes);
  // Tasks of a few huge pages, so that usually one thread touches a page first.
  const int64_t row_bytes = bytes / rows;
  int64_t step = std::max<int64_t>(1, (8 << 20) / row_bytes);
  step = threads > 1 ? std::min(step, (rows + threads - 1) / threads) : rows;
  parallel_tasks(threads, (rows + step - 1) / step, [&](int64_t task, int) {
    write(logits, labels, gradients, out, task * step, std::min(rows, (task + 1) * step));
  });
}

}  // namespace emp
