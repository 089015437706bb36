// The trained loss and its gradient for Python.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "arguments.h"
#include "cpu/cross_entropy.h"
#include "plain.h"
#include "pruning.h"
#include "scoring.h"
#include "tensors.h"

namespace bindings {

// Writes result, loss and lse. (rows that count, -1, -1), or (0, the first row with a bad label,
// the first position of a bad id).
inline py::tuple cross_entropy(const Tensor& z, const Dense& y, Ignored ignored, int reduction,
                               float beta, const Remembered& state, const Ids& ids,
                               const Written& result, const Written& loss, const Written& lse,
                               int threads) {
  const emp::Logits logits = logits_of(z);
  const emp::Labels labels = labels_of(y, ignored);
  emp::CountedRows counted;
  {
    py::gil_scoped_release released;
    counted = emp::cross_entropy(
        logits, labels, emp::Reduction(reduction), beta, state_of(state), ids_of(ids),
        {result.data<float>(), loss.data<float>(), lse.data<float>()}, threads);
  }
  return py::make_tuple(counted.count, counted.bad.label, counted.bad.id);
}

// (logits, labels, a state's tensors or None, its samples, its beta, ids or None, ignore_index or
// None, reduction, whether the gradient is wanted): (result, loss, lse, rows that count, the
// result's gradient or None) of logits (N, C) of at least one column, unless a label or id is out
// of range. The gradient is made where a call of its own would take longer than the gradient.
inline py::object plain_cross_entropy(PyObject* const* arguments) {
  PlainRows rows;
  if (!rows.look_at(arguments[0], arguments[1], arguments[6])) return {};
  PlainState state;
  if (!state.look_at(arguments[2], arguments[3], arguments[4], arguments[5], rows)) return {};
  const auto reduction = emp::Reduction(PyLong_AsLong(arguments[7]));
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  const emp::Logits logits = rows.logits();
  const bool each = reduction == emp::Reduction::kNone;
  Result<float> result = each ? Result<float>(rows.y) : Result<float>();
  Result<float> loss(rows.y), lse(rows.y);
  constexpr int64_t kBrief = 128 * 1024;
  std::optional<NewTensor> gradient;
  if (arguments[8] == Py_True && !each && logits.bytes() <= kBrief) gradient = rows.like_logits();
  const int threads = rows.threads();
  emp::CountedRows counted;
  {
    py::gil_scoped_release released;
    counted = emp::cross_entropy(logits, rows.labels(), reduction, state.beta(), state.get(),
                                 state.ids(), {result, loss, lse}, threads);
    if (gradient && !counted.bad) {
      const float scale = 1;
      const float divisor = reduction == emp::Reduction::kMean ? float(counted.count) : 1.0f;
      emp::cross_entropy_backward(logits, rows.labels(), {loss, lse, &scale, 0, divisor, nullptr},
                                  gradient->data<void>(), threads);
    }
  }
  if (counted.bad) return {};
  return py::make_tuple(result.tensor(), loss.tensor(), lse.tensor(), counted.count,
                        gradient ? gradient->tensor() : py::object(py::none()));
}

// Writes the gradient to out. `scales` has an element for each row, or one for all; `maximum` is
// of rows with columns elsewhere.
inline void cross_entropy_backward(const Tensor& z, const Dense& y, Ignored ignored,
                                   const Dense& loss, const Dense& lse, const Dense& scales,
                                   double divisor, const std::optional<Dense>& maximum,
                                   const Written& out, int threads) {
  py::gil_scoped_release released;
  emp::cross_entropy_backward(logits_of(z), labels_of(y, ignored),
                              {loss.data<const float>(), lse.data<const float>(),
                               scales.data<const float>(), scales.elements() == 1 ? 0 : 1,
                               float(divisor), maximum ? maximum->data<const float>() : nullptr},
                              out.data<void>(), threads);
}

}  // namespace bindings
