#include "row_parts.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "part_rows.h"
#include "targets.h"
#include "threads.h"

namespace emp {
namespace {

AddPartRows add_rows(LogitDtype dtype) {
#if EMP_X86
  if (target() == Target::kAvx512) return add_part_rows_avx512(dtype);
  if (target() == Target::kAvx2) return add_part_rows_avx2(dtype);
#endif
  return add_part_rows_portable(dtype);
}

}  // namespace

void add_row_parts(const Logits& piece, const Labels& labels, int64_t first_column,
                   const RowParts& parts, int threads) {
  const int64_t rows = piece.rows;
  if (rows == 0 || piece.classes == 0) return;
  const AddPartRows add = add_rows(piece.dtype);
  threads = useful_threads(threads, piece.bytes());
  const int64_t row_bytes = std::max<int64_t>(1, piece.bytes() / rows);
  const int64_t step = threads > 1 ? std::max<int64_t>(1, 64 * 1024 / row_bytes) : rows;
  parallel_tasks(threads, (rows + step - 1) / step, [&](int64_t task, int) {
    add(piece, labels, first_column, parts, task * step, std::min(rows, (task + 1) * step));
  });
}

RowCounts scores_of_parts(const RowParts& parts, int64_t rows, float beta,
                          const ScoreOutputs& out) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const StandardFloats mode;
  RowCounts counts;
  for (int64_t row = 0; row < rows; ++row) {
    const double m = parts.m[row], u = parts.u[row], t = parts.t[row], log_sum = std::log1p(u);
    const float loss = float((m - parts.z_y[row]) + log_sum);
    const float entropy = float((log_sum - t / (1 + u)) + (m - m));  // NaN if m is not finite
    const bool valid = std::fabs(loss) < kInf && std::fabs(entropy) < kInf;
    out.score[row] = valid ? loss + beta * entropy : std::numeric_limits<float>::quiet_NaN();
    out.loss[row] = loss;
    out.entropy[row] = entropy;
    out.lse[row] = float(m + log_sum);
    ++(valid ? counts.valid : counts.invalid);
  }
  return counts;
}

}  // namespace emp
