// Fuzzed cases of the state: selections and updates while other threads write.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "cpu/pruning.h"
#include "cpu/racing.h"
#include "cpu/selection.h"
#include "cpu/state.h"
#include "fuzzing.h"

// A state of n samples whose values identify their sample.
struct Samples {
  explicit Samples(int64_t size)
      : n(size), fields(exactly<float>(3 * n)), counters(exactly<int32_t>(3 * n + 1)) {
    std::fill_n(fields.get(), n, kInf);
  }
  emp::State state() const {
    return {&fields[0],   &fields[n],       &fields[2 * n],   &counters[0],
            &counters[n], &counters[2 * n], &counters[3 * n], n};
  }
  static float told(int64_t sample, int version) { return float(sample % 4096 * 8 + version); }
  // Whether each value was written for its sample or is the initial one.
  EMP_MAY_RACE bool sound() const {
    for (int64_t i = 0; i < n; ++i) {
      const float score = emp::read_once(&fields[i]), loss = emp::read_once(&fields[n + i]),
                  entropy = emp::read_once(&fields[2 * n + i]), first = told(i, 0);
      const auto written = [&](float x) {
        return x > first && x < first + 8 && x == std::floor(x);
      };
      if (!(score == kInf || written(score)) || !(loss == 0 || written(loss - 65536)) ||
          !(entropy == 0 || written(-entropy)))
        return false;
    }
    return true;
  }

  const int64_t n;
  std::unique_ptr<float[]> fields;
  std::unique_ptr<int32_t[]> counters;
};

// Rows whose values identify their sample, with or without ids.
struct Rows {
  Rows(Case& c, int64_t size, int version) : n(size), fields(exactly<float>(3 * n)) {
    if (c.below(2)) ids = exactly<int64_t>(n);
    for (int64_t row = 0; row < n; ++row) {
      const int64_t id = ids ? ids[row] = c.below(n) : row;
      const float told = Samples::told(id, version);
      fields[row] = c.below(50) == 0 ? kNaN : told;
      fields[n + row] = told + 65536;
      fields[2 * n + row] = -told;
    }
  }
  emp::ScoredRows scored() const { return {&fields[0], &fields[n], &fields[2 * n], ids.get(), n}; }

  const int64_t n;
  std::unique_ptr<float[]> fields;
  std::unique_ptr<int64_t[]> ids;
};

// Updates in two threads, selections in this one: whatever the scores are, there must be K
// ascending ids and values of the right samples.
inline void state(Case& c) {
  const int64_t n = c.below(8) ? c.one_of<int64_t>({1, 17, 300, 2048, 2049})
                               : c.one_of<int64_t>({5000, 32768, 32769, 40000});
  const Samples samples(n);
  const emp::State all = samples.state();
  const Rows writes[] = {{c, n, 1}, {c, n, 2}, {c, n, 3}};
  const int threads = int(1 + c.below(3)), turns = n > 2049 ? 5 : 40;
  std::atomic<int64_t> updates{0};
  const auto update = [&](int thread) {
    const int64_t turn = updates.fetch_add(1);
    check(emp::update_state(all, writes[(turn + thread) % 3].scored(), threads) == -1, "an id", n);
  };
  beside(2, update, [&] {
    for (int turn = 0; turn < turns; ++turn) {
      const int64_t k = c.part(n);
      const auto out = exactly<int64_t>(k);
      c.run([&] { return emp::select(all.score, n, k, out.get(), threads); });
      bool ascend = k == 0 || (out[0] >= 0 && out[k - 1] < n);
      for (int64_t i = 1; i < k; ++i) ascend &= out[i - 1] < out[i];
      check(ascend, "ids that ascend beside updates", k);
      emp::count_selections(all, out.get(), k, nullptr);
      check(samples.sound(), "numbers of their samples beside updates", n);
    }
  });
  c.count("selections beside threads that update", turns);
}

// The main call: its selection and updates must follow from its own scores; then with labels and
// ids that another thread overwrites.
inline void pruning(Case& c) {
  const int64_t rows = 1 + c.below(c.one_of<int64_t>({30, 900})), classes = 1 + c.below(12);
  const auto z = exactly<float>(rows * classes);
  for (int64_t i = 0; i < rows * classes; ++i) z[i] = c.below(300) == 0 ? kNaN : c.normal();
  const auto labels = exactly<int32_t>(rows);
  const auto ids = exactly<int64_t>(rows);
  for (int64_t i = 0; i < rows; ++i) labels[i] = c.below(9) ? int32_t(c.below(classes)) : -100;
  for (int64_t i = 0; i < rows; ++i) ids[i] = c.below(rows);
  const Samples samples(rows);
  const emp::State all = samples.state();
  const emp::KeepRule keep{c.one_of({-1.0, 1e-9, 0.3, 1.0}), 1 + c.below(rows)};
  const auto out = exactly<float>(4 * rows);
  const auto kept = exactly<int64_t>(keep.of(rows));
  float threshold;
  int32_t invalid;
  const int threads = int(1 + c.below(4));
  const auto call = [&] {
    return emp::score_and_select(
        {z.get(), emp::LogitDtype::kFloat32, rows, classes, rows, 0, classes},
        {labels.get(), emp::IntDtype::kInt32, true, -100}, 1.0f, keep, &all, ids.get(),
        {{&out[0], &out[rows], &out[2 * rows], &out[3 * rows]}, kept.get(), &threshold, &invalid},
        threads);
  };
  const emp::Pruned pruned = c.run(call);
  int64_t valid = 0, selections = 0;
  for (int64_t i = 0; i < rows; ++i) valid += out[i] > -kInf;
  check(!pruned.bad && pruned.selected == std::min(keep.of(valid), valid), "rows kept", rows);
  const std::vector<int64_t> want = highest(ranked(out.get(), rows), pruned.selected);
  check(std::equal(want.begin(), want.end(), kept.get()), "rows selected", rows);
  for (int64_t i = 0; i < rows; ++i) selections += all.selections[i];
  check(selections == pruned.selected, "selections that are counted", rows);
  c.count("pruned batches");
  if (c.below(4) != 0) return;
  const auto good_labels = exactly<int32_t>(rows);
  const auto good_ids = exactly<int64_t>(rows);
  std::copy_n(labels.get(), rows, good_labels.get());
  std::copy_n(ids.get(), rows, good_ids.get());
  const auto bad_labels = spoilt(c, good_labels.get(), rows);
  const auto bad_ids = spoilt(c, good_ids.get(), rows);
  beside(
      1,
      [&](int) {
        overwrite(ids.get(), bad_ids.get(), rows);
        overwrite(labels.get(), bad_labels.get(), rows);
        overwrite(ids.get(), good_ids.get(), rows);
        overwrite(labels.get(), good_labels.get(), rows);
      },
      [&] {
        for (int turn = 0; turn < 20; ++turn) call();
      });
  c.count("pruned batches whose labels and ids are overwritten", 20);
}
