#include "contrastive.h"

#include <algorithm>

#include "contrastive_rows.h"
#include "targets.h"
#include "threads.h"

namespace emp {
namespace {

SimilarityAdders adders() {
#if EMP_X86
  if (target() == Target::kAvx512) return similarity_adders_avx512();
  if (target() == Target::kAvx2) return similarity_adders_avx2();
#endif
  return similarity_adders_portable();
}

// Calls add for all of [0, count), in tasks of whole groups of 16.
void add_all(SimilarityAdders::Add add, const Tile& tile, const SimilaritySums& sums, int64_t count,
             int threads) {
  threads = useful_threads(threads, tile.rows * tile.columns * int64_t(sizeof(float)));
  constexpr int64_t kStep = 32;
  const int64_t step = threads > 1 ? kStep : std::max<int64_t>(count, 1);
  parallel_tasks(threads, (count + step - 1) / step, [&](int64_t task, int) {
    add(tile, sums, task * step, std::min(count, (task + 1) * step));
  });
}

}  // namespace

void add_tile_rows(const Tile& tile, const SimilaritySums& sums, int threads) {
  add_all(adders().rows, tile, sums, tile.rows, threads);
}

void add_tile_columns(const Tile& tile, const SimilaritySums& sums, int threads) {
  add_all(adders().columns, tile, sums, tile.columns, threads);
}

}  // namespace emp
