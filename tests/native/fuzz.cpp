// Fuzzes the engine under the sanitizers: fuzz [seconds] [seed] [case]. A case is generated from
// the seed and its number, so that the command printed with a failure reproduces it; the last lines
// count the cases. EMP_SIMD chooses the instruction set.
#include <sanitizer/common_interface_defs.h>

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "cpu/gathering.h"
#include "cpu/scoring.h"
#include "cpu/selection.h"
#include "cpu/tokens.h"
#include "fuzz_state.h"
#include "fuzzing.h"

#if defined(__SANITIZE_THREAD__)
constexpr const char* kSanitizer = "thread";
extern "C" const char* __tsan_default_options() { return "halt_on_error=1"; }
#else
constexpr const char* kSanitizer = "address";
#endif

namespace {

void selection(Case& c) {
  const int64_t n = c.size();
  const auto scores = c.scores(n);
  const std::vector<int64_t> order = ranked(scores.get(), n);
  for (int turn = 0; turn < 4; ++turn) {
    const int64_t k = c.part(n);
    const auto out = exactly<int64_t>(k);
    const int threads = int(1 + c.below(4));
    c.run([&] { return emp::select(scores.get(), n, k, out.get(), threads); });
    const std::vector<int64_t> want = highest(order, k);
    check(std::equal(want.begin(), want.end(), out.get()), "selection", n);
    c.count("selections");
  }
}

void tokens(Case& c) {
  const int64_t rows = c.below(9), width = 1 + c.below(c.one_of<int64_t>({9, 300, 20000}));
  const auto scores = c.scores(rows * width);
  const auto counted = exactly<int64_t>(rows);
  for (int64_t row = 0; row < rows; ++row) counted[row] = c.part(width);
  const int64_t total = std::accumulate(counted.get(), counted.get() + rows, int64_t(0));
  const auto out = exactly<int64_t>(total);
  const int threads = int(1 + c.below(4));
  const int64_t written = c.run([&] {
    return emp::select_rows(scores.get(), rows, width, counted.get(), out.get(), threads);
  });
  check(written == total, "positions in all rows", written);
  const int64_t* next = out.get();
  for (int64_t row = 0; row < rows; ++row)
    for (const int64_t want : highest(ranked(scores.get() + row * width, width), counted[row]))
      check(*next++ == row * width + want, "position in its row", row);
  c.count("token batches");
}

void gather(Case& c) {
  const int64_t count = 1 + c.below(c.one_of<int64_t>({40, 3000}));
  int64_t least = INT64_MAX, want_position = -1;
  int want_tensor = 0;
  std::vector<emp::GatherRows> tensors(size_t(1 + c.below(3)));
  std::vector<std::unique_ptr<char[]>> blocks;
  for (emp::GatherRows& t : tensors) {
    t.rows = 1 + c.below(200);
    t.row_bytes = c.below(c.one_of<int64_t>({5, 70, 2000}));
    t.stride_bytes = t.row_bytes + (c.below(2) ? c.below(20) : 0);
    const int64_t bytes = (t.rows - 1) * t.stride_bytes + t.row_bytes;
    blocks.push_back(exactly<char>(bytes));
    for (int64_t i = 0; i < bytes; ++i) blocks.back()[i] = char(i * 7 + i / 251);
    t.source = blocks.back().get();
    blocks.push_back(exactly<char>(count * t.row_bytes));
    t.out = blocks.back().get();
    least = std::min(least, t.rows);
  }
  const auto indices = exactly<int64_t>(count);
  for (int64_t k = 0; k < count; ++k) indices[k] = c.below(least);
  if (c.below(2)) std::sort(indices.get(), indices.get() + count);
  if (c.below(6) == 0)
    indices[c.below(count)] = c.one_of<int64_t>({-1, least, INT64_MIN, 1LL << 40});
  for (size_t i = tensors.size(); i-- > 0;)
    for (int64_t k = count; k-- > 0;)
      if (uint64_t(indices[k]) >= uint64_t(tensors[i].rows)) {
        want_tensor = int(i);
        want_position = k;
      }
  const int threads = int(1 + c.below(4));
  const auto call = [&] {
    return emp::gather(tensors.data(), int(tensors.size()), indices.get(), count, threads);
  };
  const emp::BadIndex bad = c.run(call);
  check(bad.position == want_position && (!bad || bad.tensor == want_tensor), "a bad index", count);
  if (!bad)
    for (const emp::GatherRows& t : tensors)
      for (int64_t k = 0; k < count; ++k)
        check(std::memcmp(t.out + k * t.row_bytes, t.source + indices[k] * t.stride_bytes,
                          size_t(t.row_bytes)) == 0,
              "gathered row", t.row_bytes);
  c.count("gathers");
  if (c.below(4) != 0) return;
  const auto good = exactly<int64_t>(count);
  std::copy_n(indices.get(), count, good.get());
  const auto wrong = spoilt(c, good.get(), count);
  beside(
      1,
      [&](int) {
        overwrite(indices.get(), wrong.get(), count);
        overwrite(indices.get(), good.get(), count);
      },
      [&] {
        for (int turn = 0; turn < 20; ++turn) call();
      });
  c.count("gathers whose indices are overwritten", 20);
}

template <class T>
void scoring(Case& c, emp::LogitDtype dtype) {
  const int64_t rows = 1 + c.below(40), classes = 1 + c.below(c.one_of<int64_t>({4, 70, 1100}));
  const int64_t stride = classes + c.below(2) * c.below(9);
  const auto z = exactly<T>((rows - 1) * stride + classes);
  const float scale = c.one_of({1e-3f, 1.0f, 30.0f, 1e4f});
  for (int64_t i = 0; i < (rows - 1) * stride + classes; ++i)
    z[i] = narrow<T>(c.below(400) == 0 ? c.one_of({kNaN, kInf, -kInf, -kInf}) : scale * c.normal());
  const auto labels = exactly<int64_t>(rows);
  for (int64_t i = 0; i < rows; ++i) labels[i] = c.below(9) == 0 ? -100 : c.below(classes);
  int64_t bad_row = -1;
  if (c.below(8) == 0)
    labels[bad_row = c.below(rows)] = c.one_of({classes, int64_t(-1), INT64_MIN});
  const emp::Logits logits{z.get(), dtype, rows, classes, rows, 0, stride};
  const emp::Labels y{labels.get(), emp::IntDtype::kInt64, true, -100};
  const auto out = exactly<float>(4 * rows);
  const emp::ScoreOutputs outputs{&out[0], &out[rows], &out[2 * rows], &out[3 * rows]};
  const int threads = int(1 + c.below(4));
  const auto call = [&] { return emp::score(logits, y, 1.0f, outputs, threads); };
  const emp::RowCounts found = c.run(call);
  check(found.bad_label == bad_row, "the row of a bad label", found.bad_label);
  for (int64_t i = 0; i < rows; ++i) {
    if (i == bad_row) continue;
    if (labels[i] == -100) {
      check(out[i] == -kInf && out[rows + i] == 0, "an ignored row", i);
      continue;
    }
    const Expected e = naive(&z[i * stride], classes, labels[i]);
    if (std::isfinite(e.loss) && std::isfinite(e.entropy))
      check(close(out[rows + i], e.loss) && close(out[2 * rows + i], e.entropy) &&
                close(out[i], e.loss + e.entropy),
            "loss, entropy or score", i);
    else
      check(std::isnan(out[i]), "the score of an invalid row", i);
  }
  c.count("rows scored", rows);
  if (bad_row >= 0 || c.below(4) != 0) return;
  const auto good = exactly<int64_t>(rows);
  std::copy_n(labels.get(), rows, good.get());
  const auto wrong = spoilt(c, good.get(), rows);
  beside(
      1,
      [&](int) {
        overwrite(labels.get(), wrong.get(), rows);
        overwrite(labels.get(), good.get(), rows);
      },
      [&] {
        for (int turn = 0; turn < 20; ++turn) call();
      });
  c.count("scorings whose labels are overwritten", 20);
}

void scoring_of_any(Case& c) {
  switch (c.below(3)) {
    case 0:
      return scoring<float>(c, emp::LogitDtype::kFloat32);
    case 1:
      return scoring<emp::Float16>(c, emp::LogitDtype::kFloat16);
    default:
      return scoring<emp::BFloat16>(c, emp::LogitDtype::kBFloat16);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 2;
  program = argv[0];
  seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  number = argc > 3 ? std::atoll(argv[3]) : 0;
  __sanitizer_set_death_callback(tell_command);
  const auto begin = std::chrono::steady_clock::now();
  const auto passed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  do {
    Case c;
    constexpr void (*kKinds[])(Case&) = {selection, tokens, gather, scoring_of_any, pruning, state};
    kKinds[c.one_of({0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5})](c);
    if (failures > 0) {
      tell_command();
      return EXIT_FAILURE;
    }
    ++number;
  } while (passed() < seconds);
  for (const auto& [what, many] : counts)
    std::printf("%" PRId64 " native (%s): %s\n", many, kSanitizer, what.c_str());
  return EXIT_SUCCESS;
}
