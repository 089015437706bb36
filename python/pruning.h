// The main call for Python: score, update the state, select.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "arguments.h"
#include "cpu/pruning.h"
#include "results.h"
#include "tensors.h"

namespace bindings {

struct Pruning {
  emp::Logits logits;
  emp::Labels labels;
  emp::KeepRule keep;
  float beta;
  const emp::State* state;  // null to store nothing
  const int64_t* ids;       // null if row i is sample i
};

// A Selection; null if a label or an id is out of range, which is reported in `bad`.
inline py::object select_scored(const Pruning& call, const Tensor& labels, int threads,
                                emp::BadValues& bad) {
  const int64_t room = call.keep.of(call.logits.rows);
  Result<int64_t> indices(room);
  Result<float> score(labels), loss(labels), entropy(labels), lse(labels), threshold;
  Result<int32_t> num_invalid;
  emp::Pruned pruned;
  {
    py::gil_scoped_release released;
    pruned = emp::score_and_select(
        call.logits, call.labels, call.beta, call.keep, call.state, call.ids,
        {{score, loss, entropy, lse}, indices, threshold, num_invalid}, threads);
  }
  bad = pruned.bad;
  if (bad) return {};
  if (pruned.selected < room) indices = indices.first(pruned.selected);
  py::object scores = named_tuple(Scores, score, loss, entropy, lse);
  return named_tuple(Selection, indices, scores, threshold, num_invalid);
}

// (-1, -1, Selection), or (the first row with an invalid label, the first position of an invalid
// id, None), one of which is -1.
inline py::tuple score_and_select(const Tensor& z, const Dense& y, Ignored ignored,
                                  emp::KeepRule keep, float beta, const Remembered& state,
                                  const Ids& ids, int threads) {
  const Pruning call{logits_of(z), labels_of(y, ignored), keep, beta, state_of(state), ids_of(ids)};
  emp::BadValues bad;
  const py::object selection = select_scored(call, y, threads, bad);
  return py::make_tuple(bad.label, bad.id, selection ? selection : py::none());
}

// A float share in (0, 1], or an int from 1 to the rows.
inline bool is_keep_of(PyObject* keep, int64_t rows, emp::KeepRule& rule) {
  if (PyFloat_CheckExact(keep)) {
    rule = {PyFloat_AS_DOUBLE(keep), 0};
    return rule.share > 0 && rule.share <= 1;
  }
  int overflow = 0;
  if (!PyLong_CheckExact(keep)) return false;
  rule = {-1, PyLong_AsLongLongAndOverflow(keep, &overflow)};
  return overflow == 0 && rule.count >= 1 && rule.count <= rows;
}

// The tensors of a state of `samples` on the CPU.
inline bool is_state(PyObject* fields, int64_t samples, emp::State& state) {
  if (!PyTuple_CheckExact(fields) || PyTuple_GET_SIZE(fields) != 7) return false;
  Tensor tensors[7];
  for (int i = 0; i < 7; ++i)
    if (!tensors[i].view(PyTuple_GET_ITEM(fields, i)) || !tensors[i].on_cpu()) return false;
  return state_of(tensors, state) && state.size == samples;
}

// (logits, labels, a state's tensors or None, its samples, its beta, keep, ids or None,
// ignore_index or None, threads): a Selection of logits (N, C) of at least one column, unless a
// label or id is out of range.
inline py::object plain_score_and_select(PyObject* const* arguments) {
  const auto is_none = [&](int i) { return arguments[i] == Py_None; };
  Tensor z, y, id;
  if (!is_plain(arguments[0], z) || z.dims() != 2 || z.size(1) == 0 ||
      (z.stride(1) != 1 && z.size(1) != 1))
    return {};
  const dlpack::DataType dtype = z.dtype();
  const bool half =
      dtype.bits == 16 && (dtype.code == dlpack::kFloat || dtype.code == dlpack::kBFloat);
  if (!half && (dtype.code != dlpack::kFloat || dtype.bits != 32)) return {};
  const int64_t rows = z.size(0);
  const auto is_of_rows = [&](PyObject* object, Tensor& tensor, int bits) {
    return is_plain(object, tensor) && tensor.dims() == 1 && tensor.size(0) == rows &&
           tensor.is_contiguous(0) && tensor.dtype().code == dlpack::kInt &&
           tensor.dtype().bits >= bits;
  };
  // 8 bits: DLPack reports torch's narrower integers as the same type.
  if (!is_of_rows(arguments[1], y, 16)) return {};
  const int64_t samples = PyLong_AsLongLong(arguments[3]);
  const float beta = float(PyFloat_AsDouble(arguments[4]));
  const int threads = int(PyLong_AsLong(arguments[8]));
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  emp::State state{};
  if (!is_none(2) && !is_state(arguments[2], samples, state)) return {};
  emp::KeepRule keep{};
  if (!is_keep_of(arguments[5], rows, keep)) return {};
  if (!is_none(6) && !is_of_rows(arguments[6], id, 64)) return {};
  if (!is_none(2) && is_none(6) && samples != rows) return {};
  Ignored ignored;
  if (!is_none(7)) {
    int overflow = 0;
    if (!PyLong_CheckExact(arguments[7])) return {};
    ignored = PyLong_AsLongLongAndOverflow(arguments[7], &overflow);
    if (overflow != 0) return {};
  }
  emp::BadValues bad;
  return select_scored(
      {logits_of(z), labels_of(y, ignored), keep, beta, is_none(2) ? nullptr : &state,
       is_none(6) ? nullptr : id.data<const int64_t>()},
      y, threads, bad);
}

}  // namespace bindings
