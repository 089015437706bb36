// Gathering for Python: rows of tensors, and of the batches that hold them.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <vector>

#include "cpu/gathering.h"
#include "tensors.h"

namespace bindings {

// Where the rows of a source lie, a tensor with contiguous rows.
inline emp::GatherRows rows_of(const Tensor& source, char* out) {
  int64_t row_bytes = source.element_bytes();
  for (int dim = 1; dim < source.dims(); ++dim) row_bytes *= source.size(dim);
  return {source.data<const char>(), out, source.size(0), row_bytes,
          source.stride(0) * source.element_bytes()};
}

// Memory for `count` rows of a source.
inline NewTensor rows_like(const Tensor& source, int64_t count) {
  std::vector<int64_t> shape(source.shape(), source.shape() + source.dims());
  shape[0] = count;
  return NewTensor(source.dtype(), shape.data(), source.dims());
}

// Rows `indices` of the sources, tensors with contiguous rows, written into `outputs` or, where
// these are None, into new tensors. (-1, -1, results), or (a source's number, the position of the
// first index out of its range, None), and then nothing was written into `outputs`.
inline py::tuple gather(const py::list& sources, const Tensor& indices,
                        const std::optional<py::list>& outputs, int threads) {
  const int64_t* const index = indices.data<const int64_t>();
  const int64_t count = indices.size(0);
  std::vector<emp::GatherRows> rows;
  py::list results;
  for (size_t i = 0; i < sources.size(); ++i) {
    const Tensor source(sources[i]);
    if (outputs) {
      rows.push_back(rows_of(source, Tensor((*outputs)[i]).data<char>()));
    } else {
      NewTensor result = rows_like(source, count);
      rows.push_back(rows_of(source, result.data<char>()));
      results.append(result.tensor());
    }
  }
  const auto checked = [&]() -> std::optional<py::tuple> {
    for (size_t i = 0; i < rows.size(); ++i) {
      const int64_t bad = emp::first_bad_index(index, count, rows[i].rows);
      if (bad >= 0) return py::make_tuple(i, bad, py::none());
    }
    return std::nullopt;
  };
  if (outputs)
    if (const auto bad = checked()) return *bad;
  bool copied = false;
  {
    py::gil_scoped_release released;
    copied = emp::gather(rows.data(), int(rows.size()), index, count, threads);
  }
  if (!copied) return checked().value();
  return py::make_tuple(-1, -1, outputs ? *outputs : results);
}

// A batch gathered without a step in Python, where the copied bytes of rows are what index_select
// makes of them: tensors of torch's own class in the CPU's memory, in dicts, lists and tuples.
class Batch {
 public:
  // `grad`: whether autograd records what is done with tensors that require it.
  Batch(py::handle indices, bool grad) : grad_(grad) {
    valid_ = is_plain(indices.ptr(), indices_) && indices_.dims() == 1 &&
             indices_.is_contiguous(0) && indices_.dtype().code == dlpack::kInt &&
             indices_.dtype().bits == 64;
  }

  // `node`, its tensors replaced by new ones that await their rows. Null where anything is not
  // plain.
  py::object results(py::handle node) {
    if (!valid_) return {};
    if (Py_TYPE(node.ptr()) == torch.tensor_type) return result(node);
    const Recursion level;
    if (PyDict_CheckExact(node.ptr())) return results_of_dict(node.ptr());
    if (PyList_CheckExact(node.ptr())) return results_of_items<py::list>(node);
    if (PyTuple_CheckExact(node.ptr())) return results_of_items<py::tuple>(node);
    return {};
  }

  // False where an index is out of range.
  bool copy_rows(int threads) const {
    const py::gil_scoped_release released;
    return emp::gather(rows_.data(), int(rows_.size()), indices_.data<const int64_t>(),
                       indices_.size(0), threads);
  }

 private:
  struct Recursion {
    Recursion() {
      if (Py_EnterRecursiveCall(" in gather") != 0) throw py::error_already_set();
    }
    ~Recursion() { Py_LeaveRecursiveCall(); }
  };

  py::object result(py::handle leaf) {
    Tensor source;
    if (!has_plain_rows(leaf.ptr(), source)) return {};
    NewTensor made = rows_like(source, indices_.size(0));
    rows_.push_back(rows_of(source, made.data<char>()));
    sources_.push_back(py::reinterpret_borrow<py::object>(leaf));
    py::object rows = made.tensor();
    // DLPack says int8 of torch.int1 to torch.int7 too, and uint8 likewise.
    const bool narrow = source.dtype().code <= dlpack::kUInt && source.dtype().bits == 8;
    return narrow && !rows.attr("dtype").is(leaf.attr("dtype")) ? py::object() : rows;
  }

  py::object results_of_dict(PyObject* node) {
    py::dict made;
    PyObject *key = nullptr, *value = nullptr;
    for (Py_ssize_t position = 0; PyDict_Next(node, &position, &key, &value);) {
      const auto own_key = py::reinterpret_borrow<py::object>(key);
      const py::object rows = results(py::reinterpret_borrow<py::object>(value));
      if (!rows) return {};
      if (PyDict_SetItem(made.ptr(), own_key.ptr(), rows.ptr()) != 0) throw py::error_already_set();
    }
    return made;
  }

  template <class Items>
  py::object results_of_items(py::handle node) {
    const auto items = py::reinterpret_borrow<Items>(node);
    Items made(items.size());
    for (size_t i = 0; i < made.size(); ++i) {
      if (i >= items.size()) return {};  // a key's __hash__ may have shortened the list
      py::object rows = results(items[i]);
      if (!rows) return {};
      made[i] = std::move(rows);
    }
    return made;
  }

  // Rows of the tensor in pieces, of which autograd does not have to learn.
  bool has_plain_rows(PyObject* object, Tensor& tensor) const {
    static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
    return is_plain(object, tensor) && tensor.dims() > 0 && tensor.is_contiguous(1) &&
           !(grad_ && is_true(PyObject_GetAttr(object, requires_grad)));
  }

  bool grad_, valid_;
  Tensor indices_;
  std::vector<py::object> sources_;  // which the caller may drop while rows are copied
  std::vector<emp::GatherRows> rows_;
};

// (batch, indices, grad, threads): rows `indices` of the batch, unless one is out of range.
inline py::object plain_gather(PyObject* const* arguments) {
  const int threads = int(PyLong_AsLong(arguments[3]));
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  Batch rows(arguments[1], arguments[2] == Py_True);
  py::object results = rows.results(arguments[0]);
  if (results && !rows.copy_rows(threads)) return {};
  return results;
}

}  // namespace bindings
