// Converts Python arguments for the kernels: tensors whose shape and device were checked in Python.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "cpu/contrastive.h"
#include "cpu/memory.h"
#include "cpu/pruning.h"
#include "cpu/row_parts.h"
#include "cpu/scoring.h"
#include "cpu/state.h"
#include "tensors.h"

namespace bindings {

using Ignored = std::optional<int64_t>;

// From (rows, classes), or groups of rows (groups, rows, classes), of unit inner stride.
inline emp::Logits logits_of(const Tensor& z) {
  emp::LogitDtype dtype = emp::LogitDtype::kFloat32;
  if (z.dtype().code == dlpack::kBFloat) dtype = emp::LogitDtype::kBFloat16;
  if (z.dtype().code == dlpack::kFloat && z.dtype().bits == 16) dtype = emp::LogitDtype::kFloat16;
  if (z.dims() == 2)
    return {z.data<void>(), dtype, z.size(0), z.size(1), z.size(0), 0, z.stride(0)};
  return {z.data<void>(), dtype,      z.size(0) * z.size(1), z.size(2), z.size(1),
          z.stride(0),    z.stride(1)};
}

// From contiguous labels of any shape.
inline emp::Labels labels_of(const Tensor& labels, Ignored ignored) {
  const bool is_signed = labels.dtype().code == dlpack::kInt;
  emp::IntDtype dtype = is_signed ? emp::IntDtype::kInt64 : emp::IntDtype::kUInt64;
  switch (labels.dtype().bits) {
    case 8:
      dtype = is_signed ? emp::IntDtype::kInt8 : emp::IntDtype::kUInt8;
      break;
    case 16:
      dtype = is_signed ? emp::IntDtype::kInt16 : emp::IntDtype::kUInt16;
      break;
    case 32:
      dtype = is_signed ? emp::IntDtype::kInt32 : emp::IntDtype::kUInt32;
      break;
  }
  return {labels.data<void>(), dtype, ignored.has_value(), ignored.value_or(0)};
}

// From (4, rows): m, u, t and z_y.
inline emp::RowParts parts_of(const Tensor& parts) {
  const auto row = [&](int i) { return parts.data<double>() + i * parts.stride(0); };
  return {row(0), row(1), row(2), row(3)};
}

// From (4, rows), the last of which is not used: m, u and t.
inline emp::SimilaritySums sums_of(const Tensor& sums) {
  const emp::RowParts parts = parts_of(sums);
  return {parts.m, parts.u, parts.t};
}

// Where a call stores its scores: the state, and the ids (rows,) int64, or row i at i.
using Remembered = std::optional<emp::State>;
using Ids = std::optional<Dense>;

inline const int64_t* ids_of(const Ids& ids) { return ids ? ids->data<const int64_t>() : nullptr; }
inline const emp::State* state_of(const Remembered& state) { return state ? &*state : nullptr; }

// score, loss, entropy, updates, selections, seen_at, clock: false unless they have one size and
// EMPState's dtypes, for example after a field was replaced.
inline bool state_of(const Tensor (&fields)[7], emp::State& state) {
  for (int i = 0; i < 7; ++i) {
    const Tensor& field = fields[i];
    const auto code = i < 3 ? dlpack::kFloat : dlpack::kInt;
    const bool shaped =
        i == 6 ? field.dims() == 0 : field.dims() == 1 && field.size(0) == fields[0].size(0);
    if (!shaped || !field.is_contiguous(0) || field.dtype().bits != 32 ||
        field.dtype().code != code)
      return false;
  }
  state = {fields[0].data<float>(),   fields[1].data<float>(),   fields[2].data<float>(),
           fields[3].data<int32_t>(), fields[4].data<int32_t>(), fields[5].data<int32_t>(),
           fields[6].data<int32_t>(), fields[0].size(0)};
  return true;
}

// A field of scores, (rows,), to be written into a state; copied if it aliases the state.
class ScoreField {
 public:
  ScoreField(const Tensor& field, const emp::State& state)
      : field_(field.data<const float>()), rows_(field.size(0)) {
    if (!lies_in(state.score, state) && !lies_in(state.loss, state) &&
        !lies_in(state.entropy, state) && !lies_in(state.updates, state) &&
        !lies_in(state.seen_at, state))
      return;
    copy_ = emp::allocate<float>(rows_);
    std::copy_n(field_, rows_, copy_.get());
  }
  operator const float*() const { return copy_ ? copy_.get() : field_; }

 private:
  bool lies_in(const void* array, const emp::State& state) const {  // of 4 bytes per sample
    const auto begin = reinterpret_cast<uintptr_t>(field_), other = uintptr_t(array);
    return begin < other + uint64_t(state.size) * 4 && other < begin + uint64_t(rows_) * 4;
  }

  const float* field_;
  int64_t rows_;
  std::unique_ptr<float[]> copy_;
};

}  // namespace bindings

// From a tuple of a state's tensors.
template <>
struct pybind11::detail::type_caster<emp::State> {
  PYBIND11_TYPE_CASTER(emp::State, const_name("tuple[torch.Tensor, ...]"));

  bool load(handle source, bool) {
    if (!PyTuple_CheckExact(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 7) return false;
    bindings::Tensor fields[7];
    for (int i = 0; i < 7; ++i) fields[i] = bindings::Written(PyTuple_GET_ITEM(source.ptr(), i));
    return bindings::state_of(fields, value);
  }
};

// Python's `keep`: a float is a share, an int a count.
template <>
struct pybind11::detail::type_caster<emp::KeepRule> {
  PYBIND11_TYPE_CASTER(emp::KeepRule, const_name("float | int"));

  bool load(handle source, bool) {
    if (PyFloat_CheckExact(source.ptr())) {
      value = {PyFloat_AS_DOUBLE(source.ptr()), 0};
      return true;
    }
    value = {-1, PyLong_AsLongLong(source.ptr())};
    return PyErr_Occurred() == nullptr;
  }
};
