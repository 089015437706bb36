// Rows [begin, end) of a scoring call, for one SIMD target: the body of scoring_<target>.cpp.
#pragma once

#include <cmath>

#include "row_sums.h"
#include "scoring.h"

namespace emp {

// log(1 + u) for u >= 0, within 1 ulp; NaN for NaN. Without branches, so that loops vectorise.
[[gnu::always_inline]] inline float log1p_positive(float u) {
  // 1 + u = w + lost exactly; w = 2^k f with f in [sqrt(1/2), sqrt(2)).
  const float w = 1.0f + u, w_u = w - 1.0f;
  const float lost = (1.0f - (w - w_u)) + (u - w_u);
  int32_t bits;
  std::memcpy(&bits, &w, 4);
  constexpr int32_t kSqrtHalf = 0x3f3504f3;
  const int32_t k = (bits - kSqrtHalf) >> 23;
  const int32_t f_bits = bits - k * (1 << 23), scale_bits = (127 - k) * (1 << 23);
  float f, scale;
  std::memcpy(&f, &f_bits, 4);
  std::memcpy(&scale, &scale_bits, 4);
  // log(1 + g) = g - g^2/2 + s (g^2/2 + s^2 (2/3 + 2/5 s^2 + ...)), s = g / (2 + g), |s| < 0.172.
  const float g = (f - 1.0f) + lost * scale;
  const float s = g / (2.0f + g), z = s * s, half_square = 0.5f * g * g;
  const float series = z * (2.0f / 3 + z * (2.0f / 5 + z * (2.0f / 7 + z * (2.0f / 9))));
  const float tail = s * (half_square + series) + float(k) * 9.0580006145e-6f;
  return float(k) * 0.69313812256f + (g - (half_square - tail));
}

// exp(x) for x <= 0, within 2 ulp where it is normal; NaN for NaN, 0 for -inf. Without branches.
[[gnu::always_inline]] inline float exp_nonpositive(float x) {
  constexpr float kLog2e = 1.44269504089f, kMagic = 12582912.0f;  // 1.5 * 2^23 rounds to integers
  const float d = x < -104.0f ? -104.0f : x;                      // exp(-104) rounds to 0
  const float k = (d * kLog2e + kMagic) - kMagic;
  const float r = (d - k * 0.693145751953125f) - k * 1.42860682e-6f;
  const float e =
      1.0f +
      r * (1.0f +
           r * (1.0f / 2 + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720))))));
  // 2^k in two steps, for it may be a denormal.
  const int32_t steps = int32_t(k == k ? k : 0.0f), half = steps >> 1;
  const int32_t first_bits = (half + 127) << 23, second_bits = (steps - half + 127) << 23;
  float first, second;
  std::memcpy(&first, &first_bits, 4);
  std::memcpy(&second, &second_bits, 4);
  return e * first * second;
}

template <class S>
struct RowScorer {
  using Kernel = RowKernel<S>;
  static constexpr int kBlock = 16;  // rows finished together
  static_assert(kBlock % S::kWidth == 0, "blocks are made of whole vectors");

  // The rows of a block that are not ignored, with the sums that give their results.
  template <class T>
  struct Block {
    int count = 0;
    int64_t row[kBlock], label[kBlock];
    const T* z[kBlock];
    RowSumsOf<kBlock> sums;

    // to[row[i]] = from[i].
    template <class Value>
    void write(Value* to, const Value* from) const {
      if (count == kBlock && row[kBlock - 1] - row[0] == kBlock - 1)
        std::memcpy(to + row[0], from, kBlock * sizeof(Value));
      else
        for (int i = 0; i < count; ++i) to[row[i]] = from[i];
    }
  };

  template <bool kStatistics, class T>
  static void sum_block(const typename Kernel::Constants& k, int64_t classes, Block<T>& block) {
    if (classes > Kernel::kFewClasses) {
      for (int i = 0; i < block.count; ++i)
        block.sums.set(
            i, Kernel::template row_sums<kStatistics>(k, block.z[i], classes, &block.sums.top[i]));
      return;
    }
    for (int i = block.count; i < kBlock; ++i) block.z[i] = block.z[0];
    for (int i = 0; i < block.count; i += S::kWidth)
      Kernel::template few_class_sums<kStatistics>(k, block.z + i, classes, i, block.sums);
  }

  enum class BadLabels { kLeftOut, kTaken };

  // Calls on_ignored(row) or, for blocks of rows, on_block(block). Returns the first row with an
  // invalid label, or -1.
  template <bool kStatistics, BadLabels kBad, class T, class OnIgnored, class OnBlock>
  static int64_t for_each_block(const Logits& logits, const Labels& labels, int64_t begin,
                                int64_t end, OnIgnored&& on_ignored, OnBlock&& on_block) {
    static const typename Kernel::Constants k;
    int64_t left_out = -1;
    for (int64_t start = begin; start < end; start += kBlock) {
      const int64_t stop = std::min(start + kBlock, end);
      int64_t label[kBlock];
      read_labels(labels, start, stop, label);
      Block<T> block;
      for (int64_t row = start; row < stop; ++row) {
        const int64_t y = label[row - start];
        if (labels.ignores(y)) {
          on_ignored(row);
          continue;
        }
        if (kBad == BadLabels::kLeftOut && uint64_t(y) >= uint64_t(logits.classes)) {
          if (left_out < 0) left_out = row;
          continue;
        }
        block.row[block.count] = row;
        block.label[block.count] = y;
        block.z[block.count++] = logits.row<T>(row);
      }
      if (block.count == 0) continue;
      sum_block<kStatistics>(k, logits.classes, block);
      on_block(block);
    }
    return left_out;
  }

  template <class T>
  static RowCounts score(const Logits& logits, const Labels& labels, float beta,
                         const ScoreOutputs& out, int64_t begin, int64_t end) {
    RowCounts counts;
    const auto on_ignored = [&](int64_t row) {
      out.score[row] = -Kernel::kInf;
      out.loss[row] = out.entropy[row] = out.lse[row] = 0.0f;
    };
    const auto on_block = [&](const Block<T>& block) {
      const float *m = block.sums.m, *u = block.sums.u, *t = block.sums.t;
      alignas(64) float z_y[kBlock] = {}, score[kBlock], loss[kBlock], entropy[kBlock], lse[kBlock];
      for (int i = 0; i < block.count; ++i) z_y[i] = to_float(block.z[i][block.label[i]]);
      for (int i = 0; i < kBlock; ++i) {
        const float log_sum = log1p_positive(u[i]);
        loss[i] = (m[i] - z_y[i]) + log_sum;
        entropy[i] = (log_sum - t[i] / (1.0f + u[i])) + (m[i] - m[i]);  // NaN if m is not finite
        lse[i] = m[i] + log_sum;
        const float sum = loss[i] + beta * entropy[i];
        const bool valid =
            (std::fabs(loss[i]) < Kernel::kInf) & (std::fabs(entropy[i]) < Kernel::kInf);
        score[i] = valid ? sum : Kernel::kNaN;
      }
      block.write(out.score, score);
      block.write(out.loss, loss);
      block.write(out.entropy, entropy);
      block.write(out.lse, lse);
      int invalid = 0;
      for (int i = 0; i < kBlock; ++i) invalid += (score[i] != score[i]) & (i < block.count);
      counts.invalid += invalid;
      counts.valid += block.count - invalid;
    };
    counts.bad_label = for_each_block<false, BadLabels::kLeftOut, T>(logits, labels, begin, end,
                                                                     on_ignored, on_block);
    return counts;
  }

  template <class T>
  static int64_t statistics(const Logits& logits, const Labels& labels, const StatisticOutputs& out,
                            int64_t begin, int64_t end) {
    const auto on_ignored = [&](int64_t row) {
      out.loss[row] = out.entropy[row] = out.lse[row] = 0.0f;
      out.confidence[row] = out.el2n[row] = out.margin[row] = 0.0f;
      out.correct[row] = false;
      out.prediction[row] = 0;
    };
    const auto on_block = [&](const Block<T>& block) {
      block_statistics(logits.classes, block, out);
    };
    return for_each_block<true, BadLabels::kLeftOut, T>(logits, labels, begin, end, on_ignored,
                                                        on_block);
  }

  template <class T>
  static void block_statistics(int64_t classes, const Block<T>& block,
                               const StatisticOutputs& out) {
    const float *m = block.sums.m, *u = block.sums.u, *t = block.sums.t, *q = block.sums.q;
    alignas(64) float z_y[kBlock] = {}, rival[kBlock] = {}, unless_finite[kBlock] = {};
    alignas(64) float loss[kBlock], entropy[kBlock], lse[kBlock];
    alignas(64) float confidence[kBlock], el2n[kBlock], margin[kBlock];
    int64_t prediction[kBlock];
    bool correct[kBlock];
    for (int i = 0; i < block.count; ++i) {
      const T* z = block.z[i];
      const int64_t y = block.label[i];
      const bool finite = std::fabs(m[i]) < Kernel::kInf && std::fabs(u[i]) < Kernel::kInf;
      z_y[i] = to_float(z[y]);
      prediction[i] = finite ? block.sums.top[i] : 0;
      correct[i] = finite && y == prediction[i];
      unless_finite[i] = finite ? 0.0f : Kernel::kNaN;
      rival[i] = m[i];
      if (!finite || z_y[i] != m[i]) continue;
      rival[i] = -Kernel::kInf;  // the row is still in cache
      if (y > 0) rival[i] = Kernel::highest_of(z, y);
      if (y + 1 < classes)
        rival[i] = std::max(rival[i], Kernel::highest_of(z + y + 1, classes - y - 1));
    }
    for (int i = 0; i < kBlock; ++i) {
      const float log_sum = log1p_positive(u[i]), sum = 1.0f + u[i];
      const bool at_maximum = z_y[i] == m[i];
      // Sums of e_j and e_j^2 over j != y: u and q lack one maximal element, which e_y may be.
      const float e_y = exp_nonpositive(z_y[i] - m[i]);
      const float others = at_maximum ? u[i] : sum - e_y;
      const float squares = at_maximum ? q[i] : (1.0f + q[i]) - e_y * e_y;
      loss[i] = (m[i] - z_y[i]) + log_sum;
      lse[i] = m[i] + log_sum;
      entropy[i] = (log_sum - t[i] / sum) + unless_finite[i];
      confidence[i] = e_y / sum + unless_finite[i];
      el2n[i] = std::sqrt(others * others + squares) / sum + unless_finite[i];
      margin[i] = (z_y[i] - rival[i]) + unless_finite[i];
    }
    block.write(out.loss, loss);
    block.write(out.entropy, entropy);
    block.write(out.lse, lse);
    block.write(out.confidence, confidence);
    block.write(out.el2n, el2n);
    block.write(out.margin, margin);
    block.write(out.correct, correct);
    block.write(out.prediction, prediction);
  }

  template <class T>
  static void sums(const Logits& logits, const Labels& labels, const SumOutputs& out, int64_t begin,
                   int64_t end) {
    const auto on_ignored = [&](int64_t row) {
      out.m[row] = out.u[row] = out.t[row] = out.z_y[row] = 0.0f;
    };
    const auto on_block = [&](const Block<T>& block) {
      for (int i = 0; i < block.count; ++i) {
        const int64_t row = block.row[i], y = block.label[i];
        out.m[row] = block.sums.m[i];
        out.u[row] = block.sums.u[i];
        out.t[row] = block.sums.t[i];
        const bool here = uint64_t(y) < uint64_t(logits.classes);
        out.z_y[row] = here ? to_float(block.z[i][y]) : Kernel::kNaN;
      }
    };
    for_each_block<false, BadLabels::kTaken, T>(logits, labels, begin, end, on_ignored, on_block);
  }
};

// What scoring.cpp calls, one set per target.
struct RowScorers {
  RowCounts (*score)(const Logits&, const Labels&, float, const ScoreOutputs&, int64_t, int64_t);
  int64_t (*statistics)(const Logits&, const Labels&, const StatisticOutputs&, int64_t, int64_t);
  void (*sums)(const Logits&, const Labels&, const SumOutputs&, int64_t, int64_t);
};

template <class S>
RowScorers row_scorers(LogitDtype dtype) {
  using Scorer = RowScorer<S>;
  switch (dtype) {
    case LogitDtype::kFloat16:
      return {Scorer::template score<Float16>, Scorer::template statistics<Float16>,
              Scorer::template sums<Float16>};
    case LogitDtype::kBFloat16:
      return {Scorer::template score<BFloat16>, Scorer::template statistics<BFloat16>,
              Scorer::template sums<BFloat16>};
    case LogitDtype::kFloat32:
      break;
  }
  return {Scorer::template score<float>, Scorer::template statistics<float>,
          Scorer::template sums<float>};
}

RowScorers row_scorers_avx512(LogitDtype dtype);
RowScorers row_scorers_avx2(LogitDtype dtype);
RowScorers row_scorers_portable(LogitDtype dtype);

}  // namespace emp
