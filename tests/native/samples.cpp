// Kernels over samples against naive double precision, built for the sanitizers (`make sanitize`),
// which detect out-of-bounds reads and races. EMP_SIMD chooses the instruction set.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cases.h"
#include "cpu/gathering.h"
#include "cpu/pruning.h"
#include "cpu/scoring.h"
#include "cpu/selection.h"
#include "cpu/shuffle.h"
#include "cpu/state.h"

namespace {

void test_selection(std::mt19937& random) {
  std::normal_distribution<float> normal;
  for (const int64_t n : {1, 2, 15, 16, 17, 1000, 32768, 32769, 200003}) {
    for (int kind = 0; kind < 5; ++kind) {
      const auto scores = exactly<float>(n);
      for (int64_t i = 0; i < n; ++i) {
        const float values[] = {normal(random), float(random() % 3) - 1.0f, -0.0f,
                                random() % 2 ? kNaN : normal(random),
                                random() % 4 ? normal(random) : -kInf};
        scores[i] = values[kind];
      }
      std::vector<int64_t> order(static_cast<size_t>(n));
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        const float x = scores[a], y = scores[b];
        return x != x || y != y ? (x == x) > (y == y) : x > y;
      });
      for (const int64_t k : {int64_t(0), int64_t(1), n / 3, n - 1, n}) {
        const auto out = exactly<int64_t>(k);
        const float threshold = emp::select(scores.get(), n, k, out.get(), 3);
        std::vector<int64_t> expected(order.begin(), order.begin() + k);
        std::sort(expected.begin(), expected.end());
        check(std::equal(expected.begin(), expected.end(), out.get()), "selection", n * 10 + kind);
        const float last = k == 0 ? kInf : scores[order[size_t(k - 1)]];
        check(threshold == last || (threshold != threshold && last != last), "threshold", n);
      }
    }
  }
}

void test_gather(std::mt19937& random) {
  for (const int64_t row_bytes : {1, 2, 3, 4, 7, 8, 12, 16, 17, 32, 63, 64, 65, 512, 5000}) {
    const int64_t rows = 300, count = 777;
    const auto source = exactly<char>(rows * row_bytes);
    for (int64_t i = 0; i < rows * row_bytes; ++i) source[i] = char(random());
    const auto indices = exactly<int64_t>(count);
    for (int64_t k = 0; k < count; ++k) indices[k] = int64_t(random() % uint64_t(rows));
    std::sort(indices.get() + 400, indices.get() + count);
    const auto out = exactly<char>(count * row_bytes), twin = exactly<char>(count * row_bytes);
    const emp::GatherRows tensors[] = {{source.get(), out.get(), rows, row_bytes, row_bytes},
                                       {source.get(), twin.get(), rows, row_bytes, row_bytes}};
    check(emp::first_bad_index(indices.get(), count, rows) == -1, "indices in range", row_bytes);
    check(!emp::gather(tensors, 2, indices.get(), count, 3), "gather", row_bytes);
    for (int64_t k = 0; k < count; ++k)
      for (const char* got : {out.get(), twin.get()})
        check(std::memcmp(got + k * row_bytes, &source[indices[k] * row_bytes],
                          size_t(row_bytes)) == 0,
              "gathered row", row_bytes);
    indices[5] = rows;
    check(emp::first_bad_index(indices.get(), count, rows) == 5, "an index too high", row_bytes);
    indices[3] = -1;
    check(emp::first_bad_index(indices.get(), count, rows) == 3, "a negative index", row_bytes);
    check(emp::gather(tensors, 2, indices.get(), count, 3).position == 3, "gather of bad indices",
          row_bytes);
  }
}

void test_pruning(std::mt19937& random) {
  std::normal_distribution<float> normal;
  const int64_t rows = 3000, classes = 60, samples = 500, k = 900;
  const auto z = exactly<float>(rows * classes);
  const auto labels = exactly<uint8_t>(rows);
  const auto ids = exactly<int64_t>(rows);
  for (int64_t i = 0; i < rows * classes; ++i) z[i] = normal(random);
  for (int64_t i = 0; i < rows; ++i) {
    labels[i] = uint8_t(random() % uint64_t(classes));
    ids[i] = int64_t(random() % uint64_t(samples));
    if (i % 7 == 0) z[i * classes + 1] = kNaN;
  }
  const auto score = exactly<float>(samples), loss = exactly<float>(samples),
             entropy = exactly<float>(samples), out = exactly<float>(4 * rows);
  const auto counters = exactly<int32_t>(3 * samples + 2);
  const auto indices = exactly<int64_t>(k);
  const emp::State state{score.get(),
                         loss.get(),
                         entropy.get(),
                         &counters[0],
                         &counters[samples],
                         &counters[2 * samples],
                         &counters[3 * samples],
                         samples};
  float threshold;
  const emp::Pruned pruned = emp::score_and_select(
      {z.get(), emp::LogitDtype::kFloat32, rows, classes, rows, 0, classes},
      {labels.get(), emp::IntDtype::kUInt8, false, 0}, 1.0f, {-1.0, k}, &state, ids.get(),
      {{&out[0], &out[rows], &out[2 * rows], &out[3 * rows]},
       indices.get(),
       &threshold,
       &counters[3 * samples + 1]},
      2);
  check(pruned.selected == k && !pruned.bad, "selected rows", pruned.selected);
  check(counters[3 * samples] == 1, "the clock", counters[3 * samples]);
  std::vector<int64_t> last(size_t(samples), -1);
  for (int64_t i = 0; i < rows; ++i)
    if (out[i] == out[i]) last[size_t(ids[i])] = i;
  int64_t selections = 0;
  for (int64_t id = 0; id < samples; ++id) {
    const int64_t row = last[size_t(id)];
    check(counters[id] == (row >= 0), "one update a call and id", id);
    if (row >= 0) check(score[id] == out[row], "the last valid row of an id", id);
    selections += counters[samples + id];
  }
  check(selections == k, "selections", selections);
}

void test_shuffle() {
  for (const int64_t n : {0, 1, 2, 7, 8, 9, 4097, 40001, (1 << 19) - 1, (1 << 19) + 3}) {
    const auto ids = exactly<int64_t>(n), first = exactly<int64_t>(n), out = exactly<int64_t>(n);
    for (int64_t i = 0; i < n; ++i) ids[i] = 3 * i + 5;
    emp::shuffle(ids.get(), n, 42, first.get(), 1);
    for (int threads = 1; threads <= 4; ++threads) {
      emp::shuffle(ids.get(), n, 42, out.get(), threads);
      check(std::equal(first.get(), first.get() + n, out.get()), "one order for a seed", n);
    }
    emp::shuffle(ids.get(), n, 43, out.get(), 2);
    check(n < 100 || !std::equal(first.get(), first.get() + n, out.get()), "another seed", n);
    for (int64_t* order : {first.get(), out.get()}) {
      std::sort(order, order + n);
      check(std::equal(order, order + n, ids.get()), "each id once", n);
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(20240801);
  test_selection(random);
  test_gather(random);
  test_pruning(random);
  test_shuffle();
  return report("samples");
}
