// The main call for Python: score, update the state, select.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "arguments.h"
#include "cpu/pruning.h"
#include "cpu/selection.h"
#include "results.h"
#include "scoring.h"
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

// (scores, keep): the positions of the highest of float32 scores (N,) in one piece.
inline py::object plain_select(PyObject* const* arguments) {
  Tensor scores;
  emp::KeepRule keep{};
  if (!is_plain(arguments[0], scores) || scores.dims() != 1 || !scores.is_contiguous(0)) return {};
  const dlpack::DataType dtype = scores.dtype();
  const int64_t rows = scores.size(0);
  if (dtype.code != dlpack::kFloat || dtype.bits != 32 || !is_keep_of(arguments[1], rows, keep))
    return {};
  const int64_t count = keep.of(rows);
  Result<int64_t> out(count);
  const int threads = settings.threads(rows * int64_t(sizeof(float)));
  {
    py::gil_scoped_release released;
    emp::select(scores.data<const float>(), rows, count, out, threads);
  }
  return out.tensor();
}

// Where scores are remembered, as most calls pass it: a state's tensors on the CPU or None, its
// samples, its beta, and int64 ids of the rows or None.
class PlainState {
 public:
  bool look_at(PyObject* fields, PyObject* samples, PyObject* beta, PyObject* ids,
               const PlainRows& rows) {
    const int64_t size = PyLong_AsLongLong(samples);
    beta_ = float(PyFloat_AsDouble(beta));
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    given_ = fields != Py_None;
    has_ids_ = ids != Py_None;
    if (given_ && (settings.recomputes() || !has_fields(fields, size))) return false;
    if (has_ids_ && !rows.is_integer_each(ids, ids_, 64)) return false;
    return !given_ || has_ids_ || size == rows.count();
  }

  float beta() const { return beta_; }
  const emp::State* get() const { return given_ ? &state_ : nullptr; }
  const int64_t* ids() const { return has_ids_ ? ids_.data<const int64_t>() : nullptr; }

 private:
  bool has_fields(PyObject* fields, int64_t size) {
    if (!PyTuple_CheckExact(fields) || PyTuple_GET_SIZE(fields) != 7) return false;
    Tensor tensors[7];
    for (int i = 0; i < 7; ++i)
      if (!tensors[i].view(PyTuple_GET_ITEM(fields, i)) || !tensors[i].on_cpu()) return false;
    return state_of(tensors, state_) && state_.size == size;
  }

  emp::State state_{};
  Tensor ids_;
  float beta_ = 1;
  bool given_ = false, has_ids_ = false;
};

// (logits, labels, a state's tensors or None, its samples, its beta, keep, ids or None,
// ignore_index or None): a Selection of logits (N, C) of at least one column, unless a
// label or id is out of range.
inline py::object plain_score_and_select(PyObject* const* arguments) {
  PlainRows rows;
  if (!rows.look_at(arguments[0], arguments[1], arguments[7])) return {};
  PlainState state;
  if (!state.look_at(arguments[2], arguments[3], arguments[4], arguments[6], rows)) return {};
  emp::KeepRule keep{};
  if (!is_keep_of(arguments[5], rows.count(), keep)) return {};
  emp::BadValues bad;
  return select_scored({rows.logits(), rows.labels(), keep, state.beta(), state.get(), state.ids()},
                       rows.y, rows.threads(), bad);
}

}  // namespace bindings
