// Scores and statistics of rows for Python.
#pragma once

#include <pybind11/pybind11.h>

#include <cmath>

#include "arguments.h"
#include "cpu/scoring.h"
#include "plain.h"
#include "results.h"
#include "tensors.h"

namespace bindings {

// Scores; null where a label is out of range, in the row that `bad` then tells.
inline py::object scores_of(const emp::Logits& logits, const emp::Labels& labels, float beta,
                            const Tensor& y, int threads, int64_t& bad) {
  Result<float> score(y), loss(y), entropy(y), lse(y);
  {
    py::gil_scoped_release released;
    bad = emp::score(logits, labels, beta, {score, loss, entropy, lse}, threads).bad_label;
  }
  if (bad >= 0) return {};
  return named_tuple(Scores, score, loss, entropy, lse);
}

// SampleStatistics, as scores_of.
inline py::object statistics_of(const emp::Logits& logits, const emp::Labels& labels,
                                const Tensor& y, int threads, int64_t& bad) {
  Result<float> loss(y), entropy(y), lse(y), confidence(y), el2n(y), margin(y);
  Result<bool> correct(y);
  Result<int64_t> prediction(y);
  {
    py::gil_scoped_release released;
    bad = emp::sample_statistics(
        logits, labels, {loss, entropy, lse, confidence, el2n, margin, correct, prediction},
        threads);
  }
  if (bad >= 0) return {};
  return named_tuple(SampleStatistics, loss, entropy, lse, confidence, el2n, margin, correct,
                     prediction);
}

// (-1, Scores), or (the first row with a bad label, None).
inline py::tuple score(const Tensor& z, const Dense& y, Ignored ignored, float beta, int threads) {
  int64_t bad = -1;
  const py::object found = scores_of(logits_of(z), labels_of(y, ignored), beta, y, threads, bad);
  return py::make_tuple(bad, found ? found : py::none());
}

// (-1, SampleStatistics), or (the first row with a bad label, None).
inline py::tuple sample_statistics(const Tensor& z, const Dense& y, Ignored ignored, int threads) {
  int64_t bad = -1;
  const py::object found = statistics_of(logits_of(z), labels_of(y, ignored), y, threads, bad);
  return py::make_tuple(bad, found ? found : py::none());
}

// Logits (N, C) of at least one column and labels (N,), as most calls pass them.
class PlainRows {
 public:
  // Whether the arguments are that, ignore_index being None or an int of 64 bits.
  bool look_at(PyObject* logits, PyObject* labels, PyObject* ignore_index) {
    if (!is_plain(logits, z_) || z_.dims() != 2 || z_.size(1) == 0 ||
        (z_.stride(1) != 1 && z_.size(1) != 1))
      return false;
    const dlpack::DataType dtype = z_.dtype();
    const bool half =
        dtype.bits == 16 && (dtype.code == dlpack::kFloat || dtype.code == dlpack::kBFloat);
    if (!half && (dtype.code != dlpack::kFloat || dtype.bits != 32)) return false;
    // Of 8 bits: DLPack calls torch's narrower integers by the same name.
    if (!is_integer_each(labels, y, 16)) return false;
    if (ignore_index == Py_None) return true;
    int overflow = 0;
    if (!PyLong_CheckExact(ignore_index)) return false;
    ignored_ = PyLong_AsLongLongAndOverflow(ignore_index, &overflow);
    return overflow == 0;
  }

  // Whether `object` is an integer of at least so many bits for each row, and sets `tensor`.
  bool is_integer_each(PyObject* object, Tensor& tensor, int bits) const {
    return is_plain(object, tensor) && tensor.dims() == 1 && tensor.size(0) == count() &&
           tensor.is_contiguous(0) && tensor.dtype().code == dlpack::kInt &&
           tensor.dtype().bits >= bits;
  }

  int64_t count() const { return z_.size(0); }
  int threads() const { return settings.threads(logits().bytes()); }
  emp::Logits logits() const { return logits_of(z_); }
  emp::Labels labels() const { return labels_of(y, ignored_); }
  NewTensor like_logits() const { return {z_.dtype(), z_.shape(), z_.dims()}; }

  Tensor y;

 private:
  Tensor z_;
  Ignored ignored_;
};

// (logits, labels, beta, ignore_index): Scores, unless a label is out of range.
inline py::object plain_score(PyObject* const* arguments) {
  PlainRows rows;
  if (!rows.look_at(arguments[0], arguments[1], arguments[3])) return {};
  if (!PyFloat_CheckExact(arguments[2])) return {};
  const double beta = PyFloat_AS_DOUBLE(arguments[2]);
  constexpr double kLargestBeta = 1e29;  // of emp_kernels/validation.py
  if (!(std::fabs(beta) <= kLargestBeta)) return {};
  int64_t bad = -1;
  return scores_of(rows.logits(), rows.labels(), float(beta), rows.y, rows.threads(), bad);
}

// (logits, labels, ignore_index): SampleStatistics, unless a label is out of range.
inline py::object plain_sample_statistics(PyObject* const* arguments) {
  PlainRows rows;
  if (!rows.look_at(arguments[0], arguments[1], arguments[2])) return {};
  int64_t bad = -1;
  return statistics_of(rows.logits(), rows.labels(), rows.y, rows.threads(), bad);
}

}  // namespace bindings
