// Kernels over rows of logits against naive double precision, built for the sanitizers (`make
// sanitize`), which detect out-of-bounds reads and races. EMP_SIMD chooses the instruction set.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cases.h"
#include "cpu/contrastive.h"
#include "cpu/cross_entropy.h"
#include "cpu/row_parts.h"
#include "cpu/scoring.h"
#include "cpu/selection.h"
#include "cpu/tokens.h"

namespace {

template <class T>
void test_scores(emp::LogitDtype dtype, std::mt19937& random) {
  const int64_t sizes[] = {1,  2,  7,  8,  9,   15,   16,   17,   31,   32,   33,   47,   48,
                           49, 63, 64, 65, 100, 1000, 1023, 1024, 1025, 2047, 2048, 2049, 4099};
  std::normal_distribution<float> normal;
  for (const int64_t classes : sizes) {
    for (const float scale : {1.0f, 30.0f, 1e4f}) {
      const int64_t rows = 35;
      const auto z = exactly<T>(rows * classes);
      const auto labels = exactly<int32_t>(rows);
      for (int64_t i = 0; i < rows * classes; ++i) z[i] = narrow<T>(scale * normal(random));
      for (int64_t i = 0; i < rows; ++i) labels[i] = int32_t(random() % uint64_t(classes));
      z[0] = narrow<T>(kNaN);
      z[2 * classes - 1] = narrow<T>(kInf);
      for (int64_t c = 0; c < classes; ++c) z[2 * classes + c] = narrow<T>(-kInf);
      for (int64_t c = 0; c < classes; c += 2) z[3 * classes + c] = narrow<T>(-kInf);
      for (int64_t c = 0; c < classes; ++c) z[4 * classes + c] = narrow<T>(float(c) * 0.01f);
      labels[5] = -100;
      const auto out = exactly<float>(10 * rows);
      const auto correct = exactly<bool>(rows);
      const auto prediction = exactly<int64_t>(rows);
      const emp::Logits logits{z.get(), dtype, rows, classes, rows, 0, classes};
      const emp::Labels y{labels.get(), emp::IntDtype::kInt32, true, -100};
      check(emp::first_bad_label(y, rows, classes) == -1, "labels are in range", classes);
      const emp::ScoreOutputs to{&out[0], &out[rows], &out[2 * rows], &out[3 * rows]};
      const emp::RowCounts counts = emp::score(logits, y, 0.5f, to, 2);
      emp::sample_statistics(logits, y,
                             {&out[4 * rows], &out[5 * rows], &out[6 * rows], &out[7 * rows],
                              &out[8 * rows], &out[9 * rows], correct.get(), prediction.get()},
                             2);
      int64_t invalid = 0;
      for (int64_t i = 0; i < rows; ++i) {
        if (i == 5) {
          check(out[i] == -kInf && out[rows + i] == 0, "an ignored row", classes);
          continue;
        }
        const Expected e = naive(z.get() + i * classes, classes, labels[i]);
        check(close(out[rows + i], e.loss), "loss", classes * 1000 + i);
        check(close(out[2 * rows + i], e.entropy), "entropy", classes * 1000 + i);
        check(close(out[4 * rows + i], e.loss), "loss of the statistics", classes * 1000 + i);
        const T* row = z.get() + i * classes;
        const auto below = [](T a, T b) { return emp::to_float(a) < emp::to_float(b); };
        if (i > 2 && std::isfinite(emp::to_float(*std::max_element(row, row + classes, below))))
          check(prediction[i] == std::max_element(row, row + classes, below) - row,
                "the lowest index of the maximum", classes * 1000 + i);
        check(prediction[i] >= 0 && prediction[i] < classes, "a class", classes * 1000 + i);
        invalid += !std::isfinite(e.loss) || !std::isfinite(e.entropy);
        check((out[i] != out[i]) == (!std::isfinite(e.loss) || !std::isfinite(e.entropy)),
              "an invalid row's score is NaN", classes * 1000 + i);
      }
      check(counts.invalid == invalid, "count of invalid rows", classes);
    }
  }
}

void test_similarities(std::mt19937& random) {
  std::normal_distribution<float> normal(0, 5);
  for (const int64_t rows : {1, 15, 33, 300})
    for (const int64_t columns : {1, 16, 31, 277}) {
      const int64_t stride = columns + 3;
      const auto z = exactly<float>((rows - 1) * stride + columns);
      for (int64_t i = 0; i < (rows - 1) * stride + columns; ++i) z[i] = normal(random);
      if (columns > 1) z[columns - 1] = -kInf;
      for (const bool transposed : {false, true}) {
        const int64_t n = transposed ? columns : rows, terms = transposed ? rows : columns;
        const auto m = exactly<double>(n), u = exactly<double>(n), t = exactly<double>(n);
        std::fill(m.get(), m.get() + n, -double(kInf));
        const auto add = transposed ? emp::add_tile_columns : emp::add_tile_rows;
        // The whole tile, then its first part again.
        add({z.get(), rows, columns, stride}, {m.get(), u.get(), t.get()}, 2);
        const int64_t half = (terms + 1) / 2;
        add({z.get(), transposed ? half : rows, transposed ? columns : half, stride},
            {m.get(), u.get(), t.get()}, 2);
        for (int64_t i = 0; i < n; ++i) {
          double highest = -double(kInf), s = 0, st = 0;
          const auto at = [&](int64_t j) {
            return double(transposed ? z[j * stride + i] : z[i * stride + j]);
          };
          for (int64_t j = 0; j < terms; ++j) highest = std::max(highest, at(j));
          if (highest == -double(kInf)) continue;
          for (int64_t j = 0; j < terms; ++j) {
            if (at(j) == -double(kInf)) continue;
            const double e = std::exp(at(j) - highest) * (j < half ? 2 : 1);
            s += e;
            st += e * (at(j) - highest);
          }
          check(m[i] == highest, "a row's highest similarity", i);
          check(close(1 + u[i], s), "a row's sum of exponentials", i);
          check(close(1 + std::fabs(t[i]), 1 + std::fabs(st)), "a row's weighted sum", i);
        }
      }
    }
}

// Rows given in pieces of columns get the scores of whole rows.
template <class T>
void test_row_parts(emp::LogitDtype dtype, std::mt19937& random) {
  const int64_t rows = 9;
  for (const int64_t classes : {1, 5, 70, 1300}) {
    auto whole = exactly<T>(rows * classes);
    auto labels = exactly<int64_t>(rows);
    for (int64_t i = 0; i < rows * classes; ++i)
      whole[i] = narrow<T>(i % 7 == 3 && i / classes == 4 ? -kInf : float(int(random() % 900)) / 9);
    whole[2 * classes] = narrow<T>(kNaN);
    for (int64_t row = 0; row < rows; ++row) labels[row] = int64_t(random() % unsigned(classes));
    labels[5] = -1;
    const emp::Labels y{labels.get(), emp::IntDtype::kInt64, true, -1};
    float want[4][rows], got[4][rows];
    emp::score({whole.get(), dtype, rows, classes, rows, 0, classes}, y, 1.0f,
               {want[0], want[1], want[2], want[3]}, 1);
    for (const int64_t width : {1, 4, 64, 1024}) {
      double parts[4][rows];
      for (int64_t row = 0; row < rows; ++row) {
        parts[0][row] = -kInf;
        parts[1][row] = parts[2][row] = 0;
        parts[3][row] = kNaN;
      }
      const emp::RowParts sums{parts[0], parts[1], parts[2], parts[3]};
      for (int64_t first = 0; first < classes; first += width) {
        const int64_t columns = std::min(width, classes - first);
        auto piece = exactly<T>(rows * columns);
        for (int64_t row = 0; row < rows; ++row)
          std::copy_n(whole.get() + row * classes + first, columns, piece.get() + row * columns);
        emp::add_row_parts({piece.get(), dtype, rows, columns, rows, 0, columns}, y, first, sums,
                           3);
      }
      emp::scores_of_parts(sums, rows, 1.0f, {got[0], got[1], got[2], got[3]});
      for (int field = 0; field < 4; ++field)
        for (int64_t row = 0; row < rows; ++row)
          check(row == 5 || close(got[field][row], want[field][row]), "row in pieces",
                classes * 10 + field);
    }
  }
}

void test_tokens(std::mt19937& random) {
  for (const int64_t rows : {0, 1, 3, 700}) {
    for (const int64_t width : {1, 9, 300}) {
      auto scores = exactly<float>(rows * width);
      auto counts = exactly<int64_t>(rows);
      int64_t total = 0;
      for (int64_t i = 0; i < rows * width; ++i) scores[i] = float(random() % 5);
      for (int64_t row = 0; row < rows; ++row)
        total += counts[row] = int64_t(random() % unsigned(width + 1));
      auto out = exactly<int64_t>(total), one = exactly<int64_t>(width);
      check(emp::select_rows(scores.get(), rows, width, counts.get(), out.get(), 3) == total,
            "positions in all rows", total);
      const int64_t* next = out.get();
      for (int64_t row = 0; row < rows; ++row) {
        emp::select(scores.get() + row * width, width, counts[row], one.get(), 1);
        for (int64_t i = 0; i < counts[row]; ++i)
          check(*next++ == row * width + one[i], "position in its row", row);
      }
    }
  }
}

// Loss, state and gradient against double precision, for one thread and for three.
template <class T>
void test_cross_entropy(emp::LogitDtype dtype, double unit, std::mt19937& random) {
  std::normal_distribution<float> normal;
  for (const int64_t classes : {1, 2, 15, 16, 17, 31, 33, 49, 100, 1025, 12000}) {
    const int64_t rows = 37;  // enough of 12000 classes for more than one thread
    const auto z = exactly<T>(rows * classes);
    const auto labels = exactly<int16_t>(rows);
    const auto ids = exactly<int64_t>(rows);
    for (int64_t i = 0; i < rows * classes; ++i) z[i] = narrow<T>(4 * normal(random));
    for (int64_t i = 0; i < rows; ++i) {
      labels[i] = int16_t(random() % uint64_t(classes));
      ids[i] = rows - 1 - i;
    }
    for (int64_t c = 0; c < classes; ++c)  // a confident row
      z[classes + c] = narrow<T>(c == labels[1] ? 40.0f : 0.0f);
    for (int64_t c = 0; c < classes; c += 2)
      if (c != labels[2]) z[2 * classes + c] = narrow<T>(-kInf);
    labels[5] = -1;
    const emp::Logits logits{z.get(), dtype, rows, classes, rows, 0, classes};
    const emp::Labels y{labels.get(), emp::IntDtype::kInt16, true, -1};
    const auto scales = exactly<float>(rows);
    for (int64_t i = 0; i < rows; ++i) scales[i] = i == 7 ? 0 : normal(random);
    std::vector<float> losses;
    std::vector<T> gradients;
    for (const int threads : {1, 3}) {
      const auto result = exactly<float>(rows), loss = exactly<float>(rows),
                 lse = exactly<float>(rows);
      const auto fields = exactly<float>(3 * rows);
      const auto counters = exactly<int32_t>(3 * rows + 1);
      const emp::State state{
          &fields[0],      &fields[rows],       &fields[2 * rows],   &counters[0],
          &counters[rows], &counters[2 * rows], &counters[3 * rows], rows};
      check(emp::cross_entropy(logits, y, emp::Reduction::kNone, 1.0f, &state, ids.get(),
                               {result.get(), loss.get(), lse.get()}, threads)
                    .count == rows - 1,
            "rows that count", classes);
      float mean, sum;
      emp::cross_entropy(logits, y, emp::Reduction::kMean, 1.0f, nullptr, nullptr,
                         {&mean, loss.get(), lse.get()}, threads);
      emp::cross_entropy(logits, y, emp::Reduction::kSum, 1.0f, nullptr, nullptr,
                         {&sum, loss.get(), lse.get()}, threads);
      const auto gradient = exactly<T>(rows * classes);
      emp::cross_entropy_backward(logits, y,
                                  {loss.get(), lse.get(), scales.get(), 1, 2.0f, nullptr},
                                  gradient.get(), threads);
      double total = 0;
      for (int64_t i = 0; i < rows; ++i) {
        const T* const row = z.get() + i * classes;
        const int64_t id = ids[i];
        Expected e{};
        if (i == 5) {
          check(result[i] == 0 && counters[id] == 0, "the loss of an ignored row", classes);
        } else {
          e = naive(row, classes, labels[i]);
          check(close(result[i], e.loss) && close(lse[i], e.lse), "loss", classes * 1000 + i);
          check(counters[id] == 1 && fields[rows + id] == loss[i], "the loss in the state", i);
          total += e.loss;
        }
        for (int64_t c = 0; c < classes; ++c) {
          double want = 0;
          if (i != 5 && i != 7) {
            want = c == labels[i] ? std::expm1(-e.loss)
                                  : std::exp(double(emp::to_float(row[c])) - e.lse);
            want *= double(scales[i]) / 2;
          }
          const double got = emp::to_float(gradient[i * classes + c]);
          check(std::fabs(got - want) <= (unit + 1e-5) * std::fabs(want) + 1e-7, "gradient",
                classes * 1000 + i);
        }
      }
      check(close(sum, total) && close(mean, total / double(rows - 1)), "reduced loss", classes);
      if (threads == 1) {
        losses.assign(result.get(), result.get() + rows);
        gradients.assign(gradient.get(), gradient.get() + rows * classes);
      } else {
        check(std::equal(losses.begin(), losses.end(), result.get()) &&
                  std::memcmp(gradients.data(), gradient.get(), gradients.size() * sizeof(T)) == 0,
              "the same at any number of threads", classes);
      }
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(20240801);
  test_scores<float>(emp::LogitDtype::kFloat32, random);
  test_scores<emp::BFloat16>(emp::LogitDtype::kBFloat16, random);
  test_scores<emp::Float16>(emp::LogitDtype::kFloat16, random);
  test_tokens(random);
  test_row_parts<float>(emp::LogitDtype::kFloat32, random);
  test_row_parts<emp::BFloat16>(emp::LogitDtype::kBFloat16, random);
  test_similarities(random);
  test_cross_entropy<float>(emp::LogitDtype::kFloat32, 0, random);
  test_cross_entropy<emp::BFloat16>(emp::LogitDtype::kBFloat16, 0x1p-8, random);
  test_cross_entropy<emp::Float16>(emp::LogitDtype::kFloat16, 0x1p-11, random);
  return report("rows");
}
