// emp_kernels._cpu: the CPU kernels for Python. Tensors come as addresses; arguments were checked
// for type, shape and device by the caller, values inside the tensors are checked here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <vector>

#include "cpu/contrastive.h"
#include "cpu/cross_entropy.h"
#include "cpu/gathering.h"
#include "cpu/pruning.h"
#include "cpu/scoring.h"
#include "cpu/selection.h"
#include "cpu/shuffle.h"
#include "cpu/state.h"
#include "cpu/targets.h"
#include "cpu/threads.h"

namespace py = pybind11;
using Address = uintptr_t;

namespace bindings {

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// (address, dtype, rows, classes, group_rows, group_stride, row_stride)
using LogitsArgs = std::tuple<Address, int, int64_t, int64_t, int64_t, int64_t, int64_t>;
// (address, dtype, has_ignored, ignored)
using LabelsArgs = std::tuple<Address, int, bool, int64_t>;

// Addresses of score, loss, entropy, updates, selections, seen_at and clock.
using StateArgs = std::array<Address, 7>;

emp::Logits logits_of(const LogitsArgs& a) {
  return {at<const void>(std::get<0>(a)),
          emp::LogitDtype(std::get<1>(a)),
          std::get<2>(a),
          std::get<3>(a),
          std::get<4>(a),
          std::get<5>(a),
          std::get<6>(a)};
}
emp::Labels labels_of(const LabelsArgs& a) {
  return {at<const void>(std::get<0>(a)), emp::IntDtype(std::get<1>(a)), std::get<2>(a),
          std::get<3>(a)};
}
emp::State state_of(const StateArgs& a, int64_t size) {
  return {at<float>(a[0]),   at<float>(a[1]),   at<float>(a[2]),   at<int32_t>(a[3]),
          at<int32_t>(a[4]), at<int32_t>(a[5]), at<int32_t>(a[6]), size};
}
emp::ScoreOutputs scores_of(const std::array<Address, 4>& a) {
  return {at<float>(a[0]), at<float>(a[1]), at<float>(a[2]), at<float>(a[3])};
}

// Each function returns the first row with a bad label, or -1 when it did its work.
int64_t score(const LogitsArgs& logits_args, const LabelsArgs& labels_args, float beta,
              const std::array<Address, 4>& out, int threads) {
  const emp::Logits logits = logits_of(logits_args);
  const emp::Labels labels = labels_of(labels_args);
  py::gil_scoped_release released;
  const int64_t bad = emp::first_bad_label(labels, logits.rows, logits.classes);
  if (bad < 0) emp::score(logits, labels, beta, scores_of(out), threads);
  return bad;
}

int64_t sample_statistics(const LogitsArgs& logits_args, const LabelsArgs& labels_args,
                          const std::array<Address, 7>& out, int threads) {
  const emp::Logits logits = logits_of(logits_args);
  const emp::Labels labels = labels_of(labels_args);
  py::gil_scoped_release released;
  const int64_t bad = emp::first_bad_label(labels, logits.rows, logits.classes);
  if (bad < 0)
    emp::sample_statistics(
        logits, labels,
        {at<float>(out[0]), at<float>(out[1]), at<float>(out[2]), at<float>(out[3]),
         at<float>(out[4]), at<float>(out[5]), at<bool>(out[6])},
        threads);
  return bad;
}

// Returns (number of selected rows, -1, -1), or (0, row with a bad label, position of a bad id).
std::tuple<int64_t, int64_t, int64_t> score_and_select(
    const LogitsArgs& logits_args, const LabelsArgs& labels_args, float beta, double share,
    int64_t count, const StateArgs& state_args, int64_t state_size, Address ids,
    const std::array<Address, 4>& scores, Address indices, Address threshold, Address num_invalid,
    int threads) {
  const emp::Logits logits = logits_of(logits_args);
  const emp::Labels labels = labels_of(labels_args);
  py::gil_scoped_release released;
  const int64_t bad_label = emp::first_bad_label(labels, logits.rows, logits.classes);
  if (bad_label >= 0) return {0, bad_label, -1};
  if (ids != 0) {
    const int64_t bad_id = emp::first_bad_index(at<const int64_t>(ids), logits.rows, state_size);
    if (bad_id >= 0) return {0, -1, bad_id};
  }
  const emp::State state = state_of(state_args, state_size);
  const int64_t selected = emp::score_and_select(
      logits, labels, beta, {share, count}, state_args[0] == 0 ? nullptr : &state,
      at<const int64_t>(ids),
      {scores_of(scores), at<int64_t>(indices), at<float>(threshold), at<int32_t>(num_invalid)},
      threads);
  return {selected, -1, -1};
}

void select(Address scores, int64_t n, int64_t count, Address out, int threads) {
  py::gil_scoped_release released;
  emp::select(at<const float>(scores), n, count, at<int64_t>(out), threads);
}

void shuffle(Address ids, int64_t n, uint64_t seed, Address out, int threads) {
  py::gil_scoped_release released;
  emp::shuffle(at<const int64_t>(ids), n, seed, at<int64_t>(out), threads);
}

// Tensors are (source, out, row_bytes, stride_bytes, rows). Returns (tensor, position) of the
// first index out of range, before anything is written, or (-1, -1).
std::pair<int64_t, int64_t> gather(
    const std::vector<std::tuple<Address, Address, int64_t, int64_t, int64_t>>& tensors,
    Address indices, int64_t count, bool fresh, int threads) {
  std::vector<emp::GatherRows> rows;
  int64_t checked = INT64_MAX;
  py::gil_scoped_release released;
  for (const auto& [source, out, row_bytes, stride_bytes, size] : tensors) {
    if (size < checked) {
      const int64_t bad = emp::first_bad_index(at<const int64_t>(indices), count, size);
      if (bad >= 0) return {int64_t(rows.size()), bad};
      checked = size;
    }
    rows.push_back({at<const char>(source), at<char>(out), row_bytes, stride_bytes});
  }
  emp::gather(rows.data(), int(rows.size()), at<const int64_t>(indices), count, fresh, threads);
  return {-1, -1};
}

// Returns the position of the first bad id, before anything is written, or -1.
int64_t update_state(const StateArgs& state, int64_t size, Address ids, int64_t rows,
                     const std::array<Address, 3>& scores) {
  py::gil_scoped_release released;
  const int64_t bad = emp::first_bad_index(at<const int64_t>(ids), rows, size);
  if (bad < 0)
    emp::update_state(state_of(state, size),
                      {at<const float>(scores[0]), at<const float>(scores[1]),
                       at<const float>(scores[2]), at<const int64_t>(ids), rows},
                      1);
  return bad;
}

// `gradients` are the addresses of loss, lse and scale.
void cross_entropy_backward(const LogitsArgs& logits_args, const LabelsArgs& labels_args,
                            const std::array<Address, 3>& gradients, Address out, int threads) {
  const emp::Logits logits = logits_of(logits_args);
  const emp::Labels labels = labels_of(labels_args);
  py::gil_scoped_release released;
  emp::cross_entropy_backward(
      logits, labels,
      {at<const float>(gradients[0]), at<const float>(gradients[1]), at<const float>(gradients[2])},
      at<void>(out), threads);
}

// `tile_args` are (address, rows, columns, stride); `sums_args` the addresses of m, u and t.
void add_tile(const std::tuple<Address, int64_t, int64_t, int64_t>& tile_args,
              const std::array<Address, 3>& sums_args, bool columns, int threads) {
  const auto [address, tile_rows, tile_columns, stride] = tile_args;
  const emp::Tile tile{at<const float>(address), tile_rows, tile_columns, stride};
  const emp::SimilaritySums sums{at<double>(sums_args[0]), at<double>(sums_args[1]),
                                 at<double>(sums_args[2])};
  py::gil_scoped_release released;
  (columns ? emp::add_tile_columns : emp::add_tile_rows)(tile, sums, threads);
}

}  // namespace bindings

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "CPU kernels of emp_kernels";
  module.def("score", &bindings::score);
  module.def("sample_statistics", &bindings::sample_statistics);
  module.def("score_and_select", &bindings::score_and_select);
  module.def("select", &bindings::select);
  module.def("shuffle", &bindings::shuffle);
  module.def("gather", &bindings::gather);
  module.def("update_state", &bindings::update_state);
  module.def("cross_entropy_backward", &bindings::cross_entropy_backward);
  module.def("add_tile", &bindings::add_tile);
  module.def("mark_forked", &emp::mark_forked,
             "This process was forked before it loaded the library: one thread from now on.");
  module.def(
      "simd_level", [] { return emp::target_name(emp::target()); },
      "The instruction set in use: avx512, avx2 or portable.");
}
