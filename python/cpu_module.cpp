// emp_kernels._cpu: the CPU kernels for Python. Tensors come as addresses; arguments were checked
// for type, shape and device by the caller, values inside the tensors are checked here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstddef>
#include <tuple>
#include <vector>

#include "cpu/contrastive.h"
#include "cpu/cross_entropy.h"
#include "cpu/gathering.h"
#include "cpu/pruning.h"
#include "cpu/row_parts.h"
#include "cpu/scoring.h"
#include "cpu/selection.h"
#include "cpu/shuffle.h"
#include "cpu/state.h"
#include "cpu/targets.h"
#include "cpu/threads.h"
#include "cpu/tokens.h"

namespace py = pybind11;
using Address = uintptr_t;

namespace bindings {

// A tuple of n Python ints: sizes, codes and addresses.
template <size_t n>
struct Ints {
  int64_t value[n];

  int64_t operator[](size_t i) const { return value[i]; }
  template <class T>
  T* at(size_t i) const {
    return reinterpret_cast<T*>(value[i]);
  }
};

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

using LogitsArgs = Ints<7>;  // address, dtype, rows, classes, group_rows, group_stride, row_stride
using LabelsArgs = Ints<4>;  // address, dtype, has_ignored, ignored
using StateArgs = Ints<7>;   // score, loss, entropy, updates, selections, seen_at, clock

emp::Logits logits_of(const LogitsArgs& a) {
  return {a.at<const void>(0), emp::LogitDtype(a[1]), a[2], a[3], a[4], a[5], a[6]};
}
emp::Labels labels_of(const LabelsArgs& a) {
  return {a.at<const void>(0), emp::IntDtype(a[1]), a[2] != 0, a[3]};
}
emp::State state_of(const StateArgs& a, int64_t size) {
  return {a.at<float>(0),   a.at<float>(1),   a.at<float>(2),   a.at<int32_t>(3),
          a.at<int32_t>(4), a.at<int32_t>(5), a.at<int32_t>(6), size};
}
emp::ScoreOutputs scores_of(const Ints<4>& a) {
  return {a.at<float>(0), a.at<float>(1), a.at<float>(2), a.at<float>(3)};
}

// Each function returns the first row with a bad label, or -1 when it did its work.
int64_t score(const LogitsArgs& logits_args, const LabelsArgs& labels_args, float beta,
              const Ints<4>& out, int threads) {
  const emp::Logits logits = logits_of(logits_args);
  const emp::Labels labels = labels_of(labels_args);
  py::gil_scoped_release released;
  const int64_t bad = emp::first_bad_label(labels, logits.rows, logits.classes);
  if (bad < 0) emp::score(logits, labels, beta, scores_of(out), threads);
  return bad;
}

int64_t sample_statistics(const LogitsArgs& logits_args, const LabelsArgs& labels_args,
                          const Ints<7>& out, int threads) {
  const emp::Logits logits = logits_of(logits_args);
  const emp::Labels labels = labels_of(labels_args);
  py::gil_scoped_release released;
  const int64_t bad = emp::first_bad_label(labels, logits.rows, logits.classes);
  if (bad < 0)
    emp::sample_statistics(logits, labels,
                           {out.at<float>(0), out.at<float>(1), out.at<float>(2), out.at<float>(3),
                            out.at<float>(4), out.at<float>(5), out.at<bool>(6)},
                           threads);
  return bad;
}

// `out` are the addresses of m, u, t and z_y.
void row_sums(const LogitsArgs& logits_args, const LabelsArgs& labels_args, const Ints<4>& out,
              int threads) {
  const emp::Logits logits = logits_of(logits_args);
  const emp::Labels labels = labels_of(labels_args);
  py::gil_scoped_release released;
  emp::row_sums(logits, labels,
                {out.at<float>(0), out.at<float>(1), out.at<float>(2), out.at<float>(3)}, threads);
}

// Addresses of m, u, t and z_y, double.
emp::RowParts parts_of(const Ints<4>& a) {
  return {a.at<double>(0), a.at<double>(1), a.at<double>(2), a.at<double>(3)};
}

int64_t first_bad_label(const LabelsArgs& labels, int64_t rows, int64_t classes) {
  py::gil_scoped_release released;
  return emp::first_bad_label(labels_of(labels), rows, classes);
}

// The labels' ranges were checked with first_bad_label.
void add_row_parts(const LogitsArgs& piece, const LabelsArgs& labels, int64_t first_column,
                   const Ints<4>& parts, int threads) {
  py::gil_scoped_release released;
  emp::add_row_parts(logits_of(piece), labels_of(labels), first_column, parts_of(parts), threads);
}

void scores_of_parts(const Ints<4>& parts, int64_t rows, float beta, const Ints<4>& out) {
  py::gil_scoped_release released;
  emp::scores_of_parts(parts_of(parts), rows, beta, scores_of(out));
}

// Returns (number of selected rows, -1, -1), or (0, row with a bad label, position of a bad id).
std::tuple<int64_t, int64_t, int64_t> score_and_select(
    const LogitsArgs& logits_args, const LabelsArgs& labels_args, float beta, double share,
    int64_t count, const StateArgs& state_args, int64_t state_size, Address ids,
    const Ints<4>& scores, Address indices, Address threshold, Address num_invalid, int threads) {
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

int64_t select_rows(Address scores, int64_t rows, int64_t width, Address counts, Address out,
                    int threads) {
  py::gil_scoped_release released;
  return emp::select_rows(at<const float>(scores), rows, width, at<const int64_t>(counts),
                          at<int64_t>(out), threads);
}

void shuffle(Address ids, int64_t n, uint64_t seed, Address out, int threads) {
  py::gil_scoped_release released;
  emp::shuffle(at<const int64_t>(ids), n, seed, at<int64_t>(out), threads);
}

// A function that counts an id in selections (size,) and returns it. It is called for each id that
// a sampler draws: a plain C function, which pybind11's calls are several times as long as.
struct Selections {
  int32_t* counts;
  int64_t size;
};
PyObject* count_id(PyObject* self, PyObject* id) {
  const auto* selections = static_cast<const Selections*>(PyCapsule_GetPointer(self, nullptr));
  const int64_t i = PyLong_AsLongLong(id);
  if (i == -1 && PyErr_Occurred() != nullptr) return nullptr;
  if (i < 0 || i >= selections->size) {
    PyErr_Format(PyExc_IndexError, "id %lld is out of range for %lld samples", (long long)i,
                 (long long)selections->size);
    return nullptr;
  }
  ++selections->counts[i];
  Py_INCREF(id);
  return id;
}
py::object counter(Address selections, int64_t size) {
  static PyMethodDef method = {"count", count_id, METH_O, nullptr};
  const py::capsule self(new Selections{at<int32_t>(selections), size},
                         [](void* p) { delete static_cast<Selections*>(p); });
  return py::reinterpret_steal<py::object>(PyCFunction_New(&method, self.ptr()));
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
                     const Ints<3>& scores) {
  py::gil_scoped_release released;
  const int64_t bad = emp::first_bad_index(at<const int64_t>(ids), rows, size);
  if (bad < 0)
    emp::update_state(state_of(state, size),
                      {scores.at<const float>(0), scores.at<const float>(1),
                       scores.at<const float>(2), at<const int64_t>(ids), rows},
                      1);
  return bad;
}

// Addresses of result, loss and lse. Returns (rows that count, -1, -1), or (0, row with a bad
// label, position of a bad id).
std::tuple<int64_t, int64_t, int64_t> cross_entropy(const LogitsArgs& logits_args,
                                                    const LabelsArgs& labels_args, int reduction,
                                                    float beta, const StateArgs& state_args,
                                                    int64_t state_size, Address ids,
                                                    const Ints<3>& out, int threads) {
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
  const int64_t counted = emp::cross_entropy(
      logits, labels, emp::Reduction(reduction), beta, state_args[0] == 0 ? nullptr : &state,
      at<const int64_t>(ids), {out.at<float>(0), out.at<float>(1), out.at<float>(2)}, threads);
  return {counted, -1, -1};
}

// `gradients` are the addresses of loss, lse, the scales, of which there are one or all, and the
// maximum, which may be 0.
void cross_entropy_backward(const LogitsArgs& logits_args, const LabelsArgs& labels_args,
                            const Ints<4>& gradients, bool one_scale, double divisor, Address out,
                            int threads) {
  const emp::Logits logits = logits_of(logits_args);
  const emp::Labels labels = labels_of(labels_args);
  py::gil_scoped_release released;
  emp::cross_entropy_backward(
      logits, labels,
      {gradients.at<const float>(0), gradients.at<const float>(1), gradients.at<const float>(2),
       one_scale ? 0 : 1, float(divisor), gradients.at<const float>(3)},
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

// pybind11's own casters of tuples and arrays take a microsecond for such a call.
template <size_t n>
struct pybind11::detail::type_caster<bindings::Ints<n>> {
  PYBIND11_TYPE_CASTER(bindings::Ints<n>, const_name("tuple[int, ...]"));

  bool load(handle source, bool) {
    if (!PyTuple_CheckExact(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != Py_ssize_t(n))
      return false;
    for (size_t i = 0; i < n; ++i)
      value.value[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(source.ptr(), i));
    return PyErr_Occurred() == nullptr;
  }
};

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "CPU kernels of emp_kernels";
  module.def("score", &bindings::score);
  module.def("first_bad_label", &bindings::first_bad_label);
  module.def("add_row_parts", &bindings::add_row_parts);
  module.def("scores_of_parts", &bindings::scores_of_parts);
  module.def("sample_statistics", &bindings::sample_statistics);
  module.def("row_sums", &bindings::row_sums);
  module.def("score_and_select", &bindings::score_and_select);
  module.def("select", &bindings::select);
  module.def("select_rows", &bindings::select_rows);
  module.def("shuffle", &bindings::shuffle);
  module.def("counter", &bindings::counter);
  module.def("gather", &bindings::gather);
  module.def("update_state", &bindings::update_state);
  module.def("cross_entropy", &bindings::cross_entropy);
  module.def("cross_entropy_backward", &bindings::cross_entropy_backward);
  module.def("add_tile", &bindings::add_tile);
  module.def("mark_forked", &emp::mark_forked,
             "This process was forked before it loaded the library: one thread from now on.");
  module.def(
      "simd_level", [] { return emp::target_name(emp::target()); },
      "The instruction set in use: avx512, avx2 or portable.");
}
