// Rows or columns [begin, end) of a tile, for one SIMD target: contrastive_<target>.cpp's body.
#pragma once

#include <algorithm>
#include <cmath>

#include "contrastive.h"
#include "row_sums.h"

namespace emp {

template <class S>
struct SimilarityAdder {
  using Kernel = RowKernel<S>;
  static constexpr int64_t kTogether = 16;  // columns copied at a time: one cache line per row
  static constexpr int64_t kDepth = 256;    // rows copied at a time
  static constexpr int64_t kPadding = 16;   // avoids cache set conflicts between the copies

  // Rescales the sums with the smaller maximum to the larger one and adds their left-out element.
  static void merge(const RowSums& tile, double& m, double& u, double& t) {
    const auto moved = [](double delta, double& its_u, double& its_t) {
      const double f = std::exp(delta);
      its_t = f * (its_t + delta * (1 + its_u));
      its_u = f * (1 + its_u);
    };
    double tile_u = tile.u, tile_t = tile.t;
    if (tile_u != tile_u) u = tile_u;
    if (tile.m == -Kernel::kInf) return;  // all elements are absent
    if (m == -Kernel::kInf) {
      m = tile.m;
      u += tile_u;  // 0, or NaN permanently
      t = tile_t;
      return;
    }
    if (tile.m > m) {
      moved(m - tile.m, u, t);
      m = tile.m;
    } else {
      moved(tile.m - m, tile_u, tile_t);
    }
    u += tile_u;
    t += tile_t;
  }

  static void add(const float* row, int64_t n, const SimilaritySums& sums, int64_t at) {
    static const typename Kernel::Constants k;
    merge(Kernel::template row_sums<false>(k, row, n), sums.m[at], sums.u[at], sums.t[at]);
  }

  static void add_rows(const Tile& tile, const SimilaritySums& sums, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) add(tile.data + i * tile.stride, tile.columns, sums, i);
  }

  // Copies kTogether columns of kDepth rows at a time, which fit in the L1 cache.
  static void add_columns(const Tile& tile, const SimilaritySums& sums, int64_t begin,
                          int64_t end) {
    alignas(64) float copies[kTogether][kDepth + kPadding];
    for (int64_t column = begin; column < end; column += kTogether) {
      const int64_t count = std::min(kTogether, end - column);
      for (int64_t row = 0; row < tile.rows; row += kDepth) {
        const int64_t depth = std::min(kDepth, tile.rows - row);
        const float* from = tile.data + row * tile.stride + column;
        if (count == kTogether)
          for (int64_t i = 0; i < depth; ++i)
            for (int64_t j = 0; j < kTogether; ++j) copies[j][i] = from[i * tile.stride + j];
        else
          for (int64_t i = 0; i < depth; ++i)
            for (int64_t j = 0; j < count; ++j) copies[j][i] = from[i * tile.stride + j];
        for (int64_t j = 0; j < count; ++j) add(copies[j], depth, sums, column + j);
      }
    }
  }
};

// What contrastive.cpp calls, one set per target.
struct SimilarityAdders {
  using Add = void (*)(const Tile&, const SimilaritySums&, int64_t, int64_t);
  Add rows, columns;
};

template <class S>
SimilarityAdders similarity_adders() {
  return {SimilarityAdder<S>::add_rows, SimilarityAdder<S>::add_columns};
}

SimilarityAdders similarity_adders_avx512();
SimilarityAdders similarity_adders_avx2();
SimilarityAdders similarity_adders_portable();

}  // namespace emp
