// Results under the floating-point modes that a caller may have set, at every number of threads:
// bit for bit those of the standard mode, with the caller's mode restored.
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cases.h"
#include "cpu/cross_entropy.h"
#include "cpu/floats.h"
#include "cpu/scoring.h"
#include "cpu/selection.h"
#include "float_mode.h"

namespace {

constexpr int kRoundings[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};

void test_standard_floats() {
  for (const bool flushed : {false, true}) {
    for (const int rounding : kRoundings) {
      const FloatMode mode(flushed, rounding);
      const uint64_t before = FloatMode::bits();
      {
        const emp::StandardFloats standard;
        check(FloatMode::bits() == 0, "the standard mode", rounding);
        volatile float tiny = 0x1p-140f, one = 1;
        check(tiny * one != 0, "a subnormal product", rounding);
        check(one + 0x1p-30f == one, "rounding to nearest", rounding);
      }
      check(FloatMode::bits() == before, "the mode before", rounding);
    }
  }
}

void append(std::vector<char>& all, const void* data, size_t bytes) {
  const char* const first = static_cast<const char*>(data);
  all.insert(all.end(), first, first + bytes);
}

template <class T>
struct Inputs {
  static constexpr int64_t kRows = 120, kClasses = 1200;  // enough for more than one thread
  static constexpr int64_t kScores = 80000, kKept = kScores / 3;

  Inputs() {
    std::mt19937 random(7);
    for (int64_t i = 0; i < kRows * kClasses; ++i) {
      const float unit = float(random() % 65536) / 65536 - 0.5f;
      const float scale[] = {20.0f, 0x1p-14f, 0x1p-130f};  // the second gives subnormal halves
      logits[i] = narrow<T>(unit * scale[i / kClasses % 3]);
    }
    for (int64_t i = 0; i < kRows; ++i) labels[i] = int64_t(random() % uint64_t(kClasses));
    for (int64_t i = 0; i < kRows; i += 5) logits[i * kClasses + labels[i]] = narrow<T>(80.0f);
    for (int64_t i = 0; i < kScores; ++i) {  // subnormal ones, which flushing would turn into ties
      const uint32_t bits = uint32_t(random() % 2) << 31 | uint32_t(random() % 0x800000);
      std::memcpy(&scores[i], &bits, 4);
    }
  }
  // The bytes of everything that calls write.
  std::vector<char> results(emp::LogitDtype dtype, int threads) const {
    const emp::Logits z{logits.get(), dtype, kRows, kClasses, kRows, 0, kClasses};
    const emp::Labels y{labels.get(), emp::IntDtype::kInt64, false, 0};
    const auto out = exactly<float>(7 * kRows + 1);
    float* const loss = &out[5 * kRows];
    float* const lse = &out[6 * kRows];
    const auto gradient = exactly<T>(kRows * kClasses);
    const auto kept = exactly<int64_t>(kKept);
    const float scale = 1;
    emp::score(z, y, 1.0f, {&out[0], &out[kRows], &out[2 * kRows], &out[3 * kRows]}, threads);
    emp::cross_entropy(z, y, emp::Reduction::kNone, 1.0f, nullptr, nullptr,
                       {&out[4 * kRows], loss, lse}, threads);
    emp::cross_entropy_backward(z, y, {loss, lse, &scale, 0, 1.0f, nullptr}, gradient.get(),
                                threads);
    out[7 * kRows] = emp::select(scores.get(), kScores, kKept, kept.get(), threads);
    std::vector<char> all;
    append(all, out.get(), size_t(7 * kRows + 1) * sizeof(float));
    append(all, gradient.get(), size_t(kRows * kClasses) * sizeof(T));
    append(all, kept.get(), size_t(kKept) * sizeof(int64_t));
    return all;
  }

  std::unique_ptr<T[]> logits = exactly<T>(kRows * kClasses);
  std::unique_ptr<int64_t[]> labels = exactly<int64_t>(kRows);
  std::unique_ptr<float[]> scores = exactly<float>(kScores);
};

template <class T>
void test_results(emp::LogitDtype dtype) {
  const Inputs<T> inputs;
  const std::vector<char> want = inputs.results(dtype, 1);
  bool flushed = false;
  for (const int rounding : kRoundings) {
    flushed = !flushed;
    for (const int threads : {1, 3}) {
      std::vector<char> got;
      {
        const FloatMode mode(flushed, rounding);
        got = inputs.results(dtype, threads);
      }
      check(got == want, "results under a caller's mode", int(dtype) * 100 + rounding);
    }
  }
}

}  // namespace

int main() {
  test_standard_floats();
  test_results<float>(emp::LogitDtype::kFloat32);
  test_results<emp::BFloat16>(emp::LogitDtype::kBFloat16);
  test_results<emp::Float16>(emp::LogitDtype::kFloat16);
  return report("modes");
}
