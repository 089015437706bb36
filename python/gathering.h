// Gathering for Python: rows of tensors, and of batches that contain them.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <vector>

#include "cpu/gathering.h"
#include "plain.h"
#include "tensors.h"

namespace bindings {

// The rows of a source, a tensor with contiguous rows.
inline emp::GatherRows rows_of(const Tensor& source, char* out) {
  int64_t row_bytes = source.size(0) > 0 ? source.element_bytes() : 0;
  for (int dim = 1; dim < source.dims() && row_bytes > 0; ++dim)
    row_bytes = emp::checked_product(row_bytes, source.size(dim));
  return {source.data<const char>(), out, source.size(0), row_bytes,
          source.stride(0) * source.element_bytes()};
}

// Memory for `count` rows of a source.
inline NewTensor rows_like(const Tensor& source, int64_t count) {
  return NewTensor(source.dtype(), count, source.shape(), source.dims());
}

// Gathers rows `indices` of the sources, tensors with contiguous rows, into `outputs` or, if None,
// into new tensors. Returns (-1, -1, results), or (a source's number, the position of the first
// index out of its range, None). Indices are checked before memory is allocated or `outputs` are
// written, and again when they are used, because another thread may write them.
inline py::tuple gather(const py::list& sources, const Dense& indices,
                        const std::optional<py::list>& outputs, int threads) {
  const int64_t* const index = indices.data<const int64_t>();
  const int64_t count = indices.size(0);
  const auto wrong = [](size_t source, int64_t position) {
    return py::make_tuple(source, position, py::none());
  };
  std::vector<Tensor> tensors;
  for (size_t i = 0; i < sources.size(); ++i) {
    tensors.emplace_back(sources[i]);
    const int64_t size = tensors[i].size(0);
    if (i > 0 && size == tensors[i - 1].size(0)) continue;
    const int64_t bad = emp::first_bad_index(index, count, size);
    if (bad >= 0) return wrong(i, bad);
  }
  std::vector<emp::GatherRows> rows;
  py::list results;
  for (size_t i = 0; i < sources.size(); ++i) {
    if (outputs) {
      rows.push_back(rows_of(tensors[i], Written((*outputs)[i]).data<char>()));
    } else {
      NewTensor result = rows_like(tensors[i], count);
      rows.push_back(rows_of(tensors[i], result.data<char>()));
      results.append(result.tensor());
    }
  }
  emp::BadIndex bad{0, -1};
  {
    py::gil_scoped_release released;
    bad = emp::gather(rows.data(), int(rows.size()), index, count, threads);
  }
  if (bad) return wrong(size_t(bad.tensor), bad.position);
  return py::make_tuple(-1, -1, outputs ? *outputs : results);
}

// Gathers a batch without running Python code, if copying the rows' bytes is equivalent to
// index_select: plain torch tensors in CPU memory, in dicts, lists and tuples.
class Batch {
 public:
  explicit Batch(py::handle indices) {
    valid_ = is_plain(indices.ptr(), indices_) && indices_.dims() == 1 &&
             indices_.is_contiguous(0) && indices_.dtype().code == dlpack::kInt &&
             indices_.dtype().bits == 64;
  }

  // A copy of `node` with new tensors, to be filled later. Null if anything is not plain.
  py::object results(py::handle node) {
    if (!valid_) return {};
    if (Py_TYPE(node.ptr()) == torch.tensor_type) return result(node);
    const Recursion level;
    if (PyDict_CheckExact(node.ptr())) return results_of_dict(node.ptr());
    if (PyList_CheckExact(node.ptr())) return results_of_items<py::list>(node);
    if (PyTuple_CheckExact(node.ptr())) return results_of_items<py::tuple>(node);
    return {};
  }

  // Returns false if an index is out of range.
  bool copy_rows() const {
    const int tensors = int(rows_.size());
    const int64_t count = indices_.size(0);
    const auto copy = [&](int threads) {
      return !emp::gather(rows_.data(), tensors, indices_.data<const int64_t>(), count, threads);
    };
    constexpr int64_t kBrief =
        16 * 1024;  // takes a microsecond, of which the steps below are a tenth
    if (emp::gathered_bytes(rows_.data(), tensors, count) < kBrief) return copy(1);
    const int threads = settings.threads();
    const py::gil_scoped_release released;
    return copy(threads);
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
    if (!has_plain_rows(leaf.ptr(), source) || !memory_is_worth_making(source)) return {};
    NewTensor made = rows_like(source, indices_.size(0));
    rows_.push_back(rows_of(source, made.data<char>()));
    py::object rows = made.tensor();
    // DLPack reports torch.int1 to torch.int7 as int8 too, and uint8 likewise.
    const bool narrow = source.dtype().code <= dlpack::kUInt && source.dtype().bits == 8;
    return narrow && !have_one_dtype(rows.ptr(), leaf.ptr()) ? py::object() : rows;
  }

  // Returns false if an index is out of range, which is checked first if the rows are so large that
  // allocation may fail.
  bool memory_is_worth_making(const Tensor& source) const {
    constexpr double kMuch = 1 << 28;
    const int64_t count = indices_.size(0);
    double bytes = double(count) * double(source.element_bytes());
    for (int dim = 1; dim < source.dims(); ++dim) bytes *= double(source.size(dim));
    return bytes < kMuch ||
           emp::first_bad_index(indices_.data<const int64_t>(), count, source.size(0)) < 0;
  }

  static bool have_one_dtype(PyObject* a, PyObject* b) {
    static PyObject* const dtype = PyUnicode_InternFromString("dtype");
    const auto first = py::reinterpret_steal<py::object>(PyObject_GetAttr(a, dtype));
    const auto second = py::reinterpret_steal<py::object>(PyObject_GetAttr(b, dtype));
    if (!first || !second) throw py::error_already_set();
    return first.is(second);
  }

  py::object results_of_dict(PyObject* node) {
    py::dict made;
    PyObject *key = nullptr, *value = nullptr;
    for (Py_ssize_t position = 0; PyDict_Next(node, &position, &key, &value);) {
      const auto own_key = py::reinterpret_borrow<py::object>(key);
      const py::object rows = results(keep(py::reinterpret_borrow<py::object>(value)));
      if (!rows) return {};
      if (PyDict_SetItem(made.ptr(), own_key.ptr(), rows.ptr()) != 0) throw py::error_already_set();
    }
    return made;
  }

  // Keeps `node` alive until all rows are copied: the caller may modify its containers.
  py::handle keep(py::object node) {
    kept_.push_back(std::move(node));
    return kept_.back();
  }

  template <class Items>
  py::object results_of_items(py::handle node) {
    const auto items = py::reinterpret_borrow<Items>(node);
    Items made(items.size());
    for (size_t i = 0; i < made.size(); ++i) {
      if (i >= items.size()) return {};  // a key's __hash__ may have shortened the list
      py::object rows = results(keep(items[i]));
      if (!rows) return {};
      made[i] = std::move(rows);
    }
    return made;
  }

  // Rows of the tensor as bytes, without involving autograd, which integers never do.
  bool has_plain_rows(PyObject* object, Tensor& tensor) const {
    static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
    return is_plain(object, tensor) && tensor.dims() > 0 && tensor.is_contiguous(1) &&
           (tensor.dtype().code <= dlpack::kUInt ||
            !(is_true(PyObject_GetAttr(object, requires_grad)) && settings.grad()));
  }

  bool valid_;
  Tensor indices_;
  std::vector<py::object> kept_;
  std::vector<emp::GatherRows> rows_;
};

// (batch, indices): rows `indices` of the batch, unless one is out of range. Declines in
// forward-mode AD, where only torch's own operations carry derivatives.
inline py::object plain_gather(PyObject* const* arguments) {
  if (settings.forward_mode()) return {};
  Batch rows(arguments[1]);
  py::object results = rows.results(arguments[0]);
  if (results && !rows.copy_rows()) return {};
  return results;
}

}  // namespace bindings
