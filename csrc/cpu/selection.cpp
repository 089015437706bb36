#include "selection.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "bracket.h"
#include "memory.h"
#include "racing.h"
#include "select_kernels.h"
#include "targets.h"
#include "threads.h"

// Two passes over the scores, whatever their distribution:
//   bracket   a random sample of the scores brackets the k-th within about one percent of n;
//   collect   first pass: counts scores above the bracket, stores those inside (candidates);
//   refine    the k-th score among the candidates, by radix digits and bisection;
//   compact   second pass: writes the positions in order.
// The counts of the first pass verify the bracket. If it fails, every score becomes a candidate and
// the radix digits narrow them, still in linear time.
//
// Another thread may write scores concurrently. All counts come from a single read, whose
// candidates are stored, so that they are consistent; the second pass is bounded by them, and a
// chunk that no longer has as many positions as were counted is filled with others.

namespace emp {
namespace {

constexpr int64_t kTiny = 2048;              // up to this many, the scores are copied to the stack
constexpr int64_t kSmall = 32768;            // up to this many, the scores are bisected directly
constexpr int64_t kFewCandidates = 1 << 20;  // up to this many, bisection beats a pass of digits

SelectKernels kernels() {
#if EMP_X86
  if (target() == Target::kAvx512) return select_kernels_avx512();
  if (target() == Target::kAvx2) return select_kernels_avx2();
#endif
  return select_kernels_portable();
}

// Extends the `written` ascending positions in out, all in [first, first + n), to `room` <= n by
// inserting the lowest missing ones.
void fill_up(int64_t* out, int64_t written, int64_t room, int64_t first, int64_t n) {
  if (written == room) return;
  // Below the last inserted one, every position is then taken.
  int64_t below = 0, taken = 0;  // positions below first + `below` that are in out
  for (int64_t missing = room - written; below < n && below - taken < missing; ++below)
    taken += taken < written && out[taken] == first + below;
  std::memmove(out + below, out + taken, size_t(written - taken) * sizeof *out);
  std::iota(out, out + below, first);
}

// A run of consecutive scores, the unit of work of both passes.
struct Chunk {
  int64_t begin, length;
  float* candidates;  // scores inside the bracket, capacity `length` + 16
  int64_t num_candidates = 0;
  int64_t above = 0;  // scores above the candidates
  int64_t ties = 0;   // scores equal to the threshold that are taken
  int64_t out = 0;    // offset of its positions in the output
  bool takes_all_ties = true;
};

class Selector {
 public:
  Selector(const float* scores, int64_t n, int64_t k, int64_t* out, int threads)
      : run_(kernels()),
        scores_(scores),
        n_(n),
        k_(k),
        out_(out),
        threads_(useful_threads(threads, 4 * n)) {}

  float select() { return n_ <= kSmall ? select_small() : select_large(); }

 private:
  // For a copy, which needs no allocation for few scores.
  float select_small() {
    float few[kTiny];
    std::unique_ptr<float[]> many;
    if (n_ > kTiny) many = allocate<float>(n_);
    float* const copy = n_ > kTiny ? many.get() : few;
    std::memcpy(copy, scores_, size_t(n_) * sizeof(float));
    scores_ = copy;
    const auto reach = [&](float bound) { return run_.count_at_least(copy, n_, bound); };
    if (reach(-kInf) < k_) return take_nan();
    const float bound = bisect(key_of(-kInf), key_of(kInf), k_, reach);
    const float threshold = run_.lowest_at_least(copy, n_, bound);
    Chunk all{0, n_, nullptr};
    all.above = threshold == kInf ? 0 : reach(next_above(threshold));
    all.ties = k_ - all.above;
    all.takes_all_ties = reach(threshold) == k_;
    compact(all, threshold);
    return threshold;
  }

  float select_large() {
    const int64_t chunk = n_ < kManyScores ? 16384 : 65536;
    const int64_t chunks = (n_ + chunk - 1) / chunk, stride = chunk + 16;
    // Only pages that candidates are written to are committed.
    const std::unique_ptr<float[]> candidates = allocate<float>(chunks * stride);
    chunks_.reserve(size_t(chunks));
    for (int64_t i = 0; i < chunks; ++i)
      chunks_.push_back({i * chunk, std::min(chunk, n_ - i * chunk), &candidates[i * stride]});

    Bracket bracket = sample_bracket(run_, scores_, n_, k_);
    int64_t above = collect(bracket);
    if (above >= k_ || above + num_candidates() < k_) {
      bracket = {-kInf, kInf};
      above = collect(bracket);
      if (num_candidates() < k_) return take_nan();
    }
    const float threshold = refine(bracket, k_ - above);
    for_each_chunk([&](Chunk& c) {
      const int64_t reach = run_.count_at_least(c.candidates, c.num_candidates, threshold);
      const int64_t more = threshold == kInf ? 0
                                             : run_.count_at_least(c.candidates, c.num_candidates,
                                                                   next_above(threshold));
      c.above += more;
      c.ties = reach - more;
    });
    compact(threshold);
    return threshold;
  }

  template <class Body>
  void for_each_chunk(Body&& body) {
    parallel_tasks(threads_, int64_t(chunks_.size()),
                   [&](int64_t i, int) { body(chunks_[size_t(i)]); });
  }

  int64_t num_candidates() const {
    int64_t sum = 0;
    for (const Chunk& c : chunks_) sum += c.num_candidates;
    return sum;
  }

  // First pass. Returns the number of scores above the bracket.
  int64_t collect(Bracket bracket) {
    for_each_chunk([&](Chunk& c) {
      const auto found =
          run_.collect(scores_ + c.begin, c.length, bracket.low, bracket.high, c.candidates);
      c.above = found.above;
      c.num_candidates = found.written;
    });
    int64_t above = 0;
    for (const Chunk& c : chunks_) above += c.above;
    return above;
  }

  // The k-th highest candidate. Many candidates are first narrowed digit by digit, dropping those
  // outside the k-th one's digit and counting the dropped ones above it.
  float refine(Bracket bracket, int64_t k) {
    uint32_t low = key_of(bracket.low), high = key_of(bracket.high);
    while (low < high && num_candidates() > kFewCandidates) {
      const int bits = 32 - __builtin_clz(high - low), shift = std::max(0, bits - kDigitBits);
      const std::vector<int64_t> digits = count_digits(low, shift);
      int64_t digit = int64_t(digits.size()) - 1;
      for (; digits[size_t(digit)] < k; --digit) k -= digits[size_t(digit)];
      low += uint32_t(digit) << shift;
      high = std::min(high, low + ((uint32_t(1) << shift) - 1));
      if (high == kMinusZeroKey) --high;  // no key; -0 as a bound would include +0
      for_each_chunk([&](Chunk& c) {
        const auto kept = run_.collect(c.candidates, c.num_candidates, float_of(low),
                                       float_of(high), c.candidates);
        c.above += kept.above;
        c.num_candidates = kept.written;
      });
    }
    const float bound = bisect(low, high, k, [&](float at_least) {
      int64_t count = 0;
      for (const Chunk& c : chunks_)
        count += run_.count_at_least(c.candidates, c.num_candidates, at_least);
      return count;
    });
    float lowest = kInf;
    for (const Chunk& c : chunks_)
      lowest = std::min(lowest, run_.lowest_at_least(c.candidates, c.num_candidates, bound));
    return lowest;
  }

  static constexpr int kDigitBits = 11;

  // Histogram of the candidates' digits (key - low) >> shift.
  std::vector<int64_t> count_digits(uint32_t low, int shift) {
    constexpr size_t kDigits = size_t(1) << kDigitBits;
    std::vector<std::vector<int64_t>> counts(static_cast<size_t>(threads_),
                                             std::vector<int64_t>(kDigits));
    parallel_tasks(threads_, int64_t(chunks_.size()), [&](int64_t i, int thread) {
      const Chunk& c = chunks_[size_t(i)];
      int64_t* count = counts[size_t(thread)].data();
      for (int64_t j = 0; j < c.num_candidates; ++j)
        ++count[(key_of(c.candidates[j]) - low) >> shift];
    });
    for (size_t t = 1; t < counts.size(); ++t)
      for (size_t d = 0; d < kDigits; ++d) counts[0][d] += counts[t][d];
    return std::move(counts[0]);
  }

  // Second pass; every chunk's `above` and `ties` now refer to the threshold.
  void compact(float threshold) {
    int64_t ties_left = k_, out = 0;
    for (const Chunk& c : chunks_) ties_left -= c.above;
    for (Chunk& c : chunks_) {  // ties go to the lowest positions
      const int64_t ties = std::min(c.ties, ties_left);
      c.takes_all_ties = ties == c.ties;
      c.ties = ties;
      ties_left -= ties;
      c.out = out;
      out += c.above + c.ties;
    }
    for_each_chunk([&](Chunk& c) { compact(c, threshold); });
  }

  // Writes c.above + c.ties positions of the chunk.
  void compact(const Chunk& c, float threshold) {
    const float* const scores = scores_ + c.begin;
    int64_t* const to = out_ + c.out;
    const int64_t room = c.above + c.ties;
    int64_t written = 0, end = 0;  // of the part in which all ties are taken
    if (c.ties > 0) {
      end = c.takes_all_ties ? c.length : behind_ties(scores, c.length, threshold, c.ties);
      written = run_.compact(scores, end, threshold, Ties::kAll, c.begin, to, room);
    }
    written += run_.compact(scores + end, c.length - end, threshold, Ties::kNone, c.begin + end,
                            to + written, room - written);
    fill_up(to, written, room, c.begin, c.length);
  }

  // The end of the first `ties` > 0 scores equal to the threshold.
  EMP_MAY_RACE static int64_t behind_ties(const float* scores, int64_t n, float threshold,
                                          int64_t ties) {
    int64_t end = 0;
    for (; end < n && ties > 0; ++end) ties -= read_once(scores + end) == threshold;
    return end;
  }

  // Fewer than k scores are not NaN: take all of them and the first NaNs.
  EMP_MAY_RACE float take_nan() {
    int64_t nan_left = k_, written = 0;
    for (int64_t i = 0; i < n_; ++i) {
      const float s = read_once(scores_ + i);
      nan_left -= s == s;
    }
    for (int64_t i = 0; i < n_ && written < k_; ++i) {
      const float s = read_once(scores_ + i);
      if (s == s || nan_left-- > 0) out_[written++] = i;
    }
    fill_up(out_, written, k_, 0, n_);
    return std::numeric_limits<float>::quiet_NaN();
  }

  const SelectKernels run_;
  const float* scores_;
  const int64_t n_, k_;
  int64_t* out_;
  const int threads_;
  std::vector<Chunk> chunks_;
};

}  // namespace

float select(const float* scores, int64_t n, int64_t k, int64_t* out, int threads) {
  if (k == 0) return kInf;
  const StandardFloats mode;
  return Selector(scores, n, k, out, threads).select();
}

}  // namespace emp
