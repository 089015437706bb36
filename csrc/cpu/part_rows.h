// Rows [begin, end) of a piece of logits, for one SIMD target: the body of row_parts_<target>.cpp.
#pragma once

#include <algorithm>
#include <cmath>

#include "row_parts.h"
#include "row_sums.h"

namespace emp {

template <class S>
struct PartRows {
  using Kernel = RowKernel<S>;

  // Merges one row's sums of a piece with those of all earlier pieces.
  static void merge(const RowSums& piece, double& m, double& u, double& t) {
    const double high = std::max<double>(m, piece.m), low = std::min<double>(m, piece.m);
    const bool grows = double(piece.m) > m;
    const double high_u = grows ? piece.u : u, high_t = grows ? piece.t : t;
    const double low_u = grows ? u : piece.u, low_t = grows ? t : piece.t;
    m = high;
    u = high_u;
    t = high_t;
    if (low_u != low_u) u = low_u;  // NaN permanently
    if (low == -double(Kernel::kInf) || high == double(Kernel::kInf)) return;
    const double delta = low - high, f = std::exp(delta);
    t += f * (low_t + delta * (low_u + 1));  // including the lower maximum, left out so far
    u += f * (low_u + 1);
  }

  template <class T>
  static void add(const Logits& piece, const Labels& labels, int64_t first_column,
                  const RowParts& parts, int64_t begin, int64_t end) {
    static const typename Kernel::Constants k;
    const int64_t columns = piece.classes;
    for_each_label(labels, begin, end, [&](int64_t row, int64_t y) {
      if (labels.ignores(y)) return;
      const T* z = piece.row<T>(row);
      const RowSums sums = Kernel::template row_sums<false>(k, z, columns);
      merge(sums, parts.m[row], parts.u[row], parts.t[row]);
      if (y >= first_column && y - first_column < columns)
        parts.z_y[row] = to_float(z[y - first_column]);
    });
  }
};

// What row_parts.cpp calls, one per target.
using AddPartRows = void (*)(const Logits&, const Labels&, int64_t, const RowParts&, int64_t,
                             int64_t);

template <class S>
AddPartRows add_part_rows(LogitDtype dtype) {
  switch (dtype) {
    case LogitDtype::kFloat16:
      return PartRows<S>::template add<Float16>;
    case LogitDtype::kBFloat16:
      return PartRows<S>::template add<BFloat16>;
    case LogitDtype::kFloat32:
      break;
  }
  return PartRows<S>::template add<float>;
}

AddPartRows add_part_rows_avx512(LogitDtype dtype);
AddPartRows add_part_rows_avx2(LogitDtype dtype);
AddPartRows add_part_rows_portable(LogitDtype dtype);

}  // namespace emp
