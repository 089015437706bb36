// Converts tensors between Python and C++ through DLPack.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "cpu/memory.h"
#include "cpu/pages.h"
#include "dlpack.h"
#include "reserve.h"

namespace bindings {

namespace py = pybind11;

// The parts of torch that this module uses.
struct Torch {
  PyTypeObject* tensor_type = nullptr;
  PyObject *from_dlpack = nullptr, *to_dlpack = nullptr;
  // Methods to call with a tensor, stored because each lookup costs part of a call.
  PyObject *is_neg = nullptr, *is_conj = nullptr;
  const dlpack::ExchangeApi* exchange = nullptr;  // null with older torch versions
};
inline Torch torch;

// torch.Tensor, torch._C's _from_dlpack and _to_dlpack, and torch.Tensor.__dlpack_c_exchange_api__
// or None.
inline void use_torch(const py::type& tensor, const py::object& from_dlpack,
                      const py::object& to_dlpack, const py::object& exchange) {
  torch = {reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr()),
           from_dlpack.inc_ref().ptr(),
           to_dlpack.inc_ref().ptr(),
           py::object(tensor.attr("is_neg")).release().ptr(),
           py::object(tensor.attr("is_conj")).release().ptr(),
           nullptr};
  if (exchange.is_none()) return;
  const auto* api = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
  if (api == nullptr) throw py::error_already_set();
  if (api->version.major == 1) torch.exchange = api;
}

// Converts a bool returned by a call.
inline bool is_true(PyObject* found) {
  if (found == nullptr) throw py::error_already_set();
  Py_DECREF(found);  // True and False are immortal
  return found == Py_True;
}

// A tensor argument during a call, with its data in memory. Lazily negated or conjugated tensors
// are copied.
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(py::handle source) {
    look_at(source);
    if (is_read_otherwise(source.ptr())) look_at_copy(resolved(source));
  }

  // Views `source` directly if possible; returns whether it was.
  bool view(PyObject* source) {
    if (torch.exchange == nullptr) return false;
    if (torch.exchange->view(source, &view_) != 0) {
      PyErr_Clear();
      return false;
    }
    return has_memory(source);
  }

  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<char*>(view_.data) + view_.byte_offset);
  }
  bool on_cpu() const { return view_.device.type == dlpack::kCpu.type; }
  int dims() const { return view_.ndim; }
  int64_t size(int dim) const { return view_.shape[dim]; }
  int64_t stride(int dim) const { return view_.strides[dim]; }  // in elements
  const int64_t* shape() const { return view_.shape; }
  int64_t elements() const {
    int64_t n = 1;
    for (int dim = 0; dim < dims(); ++dim) n *= size(dim);
    return n;
  }
  // Whether the remaining dimensions, with the first ones fixed, are contiguous.
  bool is_contiguous(int first) const {
    int64_t expected = 1;
    for (int dim = dims() - 1; dim >= first; --dim) {
      if (size(dim) != 1 && stride(dim) != expected) return elements() == 0;
      expected *= size(dim);
    }
    return true;
  }
  dlpack::DataType dtype() const { return view_.dtype; }
  int64_t element_bytes() const { return int64_t(view_.dtype.bits) * view_.dtype.lanes / 8; }
  bool is_complex() const { return view_.dtype.code == dlpack::kComplex; }

  // Whether `source`, this tensor, is lazily negated or conjugated.
  bool is_read_otherwise(PyObject* source) const {
    return is_true(PyObject_CallOneArg(torch.is_neg, source)) ||
           (is_complex() && is_true(PyObject_CallOneArg(torch.is_conj, source)));
  }

 protected:
  void look_at(py::handle source) {
    if (torch.exchange != nullptr) {
      if (torch.exchange->view(source.ptr(), &view_) != 0) throw py::error_already_set();
    } else {
      owner_ =
          py::reinterpret_steal<py::object>(PyObject_CallOneArg(torch.to_dlpack, source.ptr()));
      if (!owner_) throw py::error_already_set();
      const void* managed = PyCapsule_GetPointer(owner_.ptr(), dlpack::kCapsule);
      if (managed == nullptr) throw py::error_already_set();
      view_ = static_cast<const dlpack::ManagedTensor*>(managed)->tensor;
    }
    if (!has_memory(source.ptr()))
      throw py::type_error("a tensor must lie in memory, got one without any");
  }

  void look_at_copy(py::object copy) {
    look_at(copy);
    if (torch.exchange != nullptr) owner_ = std::move(copy);
  }
  static py::object resolved(py::handle source) {
    return source.attr("resolve_conj")().attr("resolve_neg")();
  }

 private:
  // torch has zero tensors without memory, whose addresses are offsets from null. Ordinary
  // addresses are not checked further.
  bool has_memory(PyObject* source) const {
    constexpr uint64_t kUsual = uint64_t(1) << 40;
    if (uint64_t(reinterpret_cast<uintptr_t>(view_.data)) >= kUsual || elements() == 0) return true;
    static PyObject* const is_zerotensor = PyUnicode_InternFromString("_is_zerotensor");
    return view_.data != nullptr && !is_true(PyObject_CallMethodNoArgs(source, is_zerotensor));
  }

  dlpack::Tensor view_{};
  py::object owner_;  // owner of view_'s memory: a copy, or with older torch versions
};

// A contiguous tensor argument; others are copied.
class Dense : public Tensor {
 public:
  Dense() = default;
  explicit Dense(py::handle source) : Tensor(source) {
    if (!is_contiguous(0)) look_at_copy(resolved(source).attr("contiguous")());
  }
};

// A tensor to write into: never a lazily negated view, because the package made it.
class Written : public Tensor {
 public:
  Written() = default;
  explicit Written(py::handle target) { look_at(target); }
};

// Uninitialised memory for a result, which becomes a contiguous tensor. Large results request huge
// pages, because page faults of small pages cost more than computing most results.
class NewTensor {
 public:
  NewTensor(dlpack::DataType dtype, const int64_t* shape, int dims)
      : NewTensor(dtype, dims == 0 ? 1 : shape[0], shape, dims) {}

  // With the first dimension of the shape replaced by `rows`.
  NewTensor(dlpack::DataType dtype, int64_t rows, const int64_t* shape, int dims) {
    reserve.check();  // for torch, in tensor()
    const int64_t bytes = bytes_of(dtype, rows, shape, dims);
    constexpr size_t kAlignment = 64;
    const size_t header = sizeof(Block) + size_t(dims) * sizeof(int64_t);
    block_.reset(static_cast<Block*>(std::malloc(header + kAlignment + size_t(bytes))));
    if (!block_) throw emp::OutOfMemory(bytes);
    block_->handed_over = false;
    const uintptr_t end = reinterpret_cast<uintptr_t>(block_.get()) + header;
    void* data = reinterpret_cast<void*>((end + kAlignment - 1) / kAlignment * kAlignment);
    emp::prefer_huge_pages(data, bytes);
    int64_t* own_shape = reinterpret_cast<int64_t*>(block_.get() + 1);
    std::copy_n(shape, dims, own_shape);
    if (dims > 0) own_shape[0] = rows;
    block_->tensor = {data, dlpack::kCpu, dims, dtype, own_shape, nullptr, 0};
  }

  template <class T>
  T* data() const {
    return static_cast<T*>(block_->tensor.data);
  }

  // Call once: the memory then belongs to torch. If torch fails, it may or may not have called the
  // deleter, which frees nothing before the tensor exists.
  py::object tensor() {
    void* made = nullptr;
    if (torch.exchange != nullptr) {
      block_->versioned = {{1, 0}, block_.get(), free_context, 0, block_->tensor};
      if (torch.exchange->to_object(&block_->versioned, &made) != 0) throw_refusal();
    } else {
      block_->managed = {block_->tensor, block_.get(), free_context};
      const auto capsule = py::reinterpret_steal<py::object>(
          PyCapsule_New(&block_->managed, dlpack::kCapsule, nullptr));
      if (!capsule) throw py::error_already_set();
      made = PyObject_CallOneArg(torch.from_dlpack, capsule.ptr());
      if (made == nullptr) throw_refusal();
    }
    block_->handed_over = true;
    block_.release();
    return py::reinterpret_steal<py::object>(static_cast<PyObject*>(made));
  }

 private:
  // Allocated before the shape, which comes before the elements.
  struct Block {
    bool handed_over;
    dlpack::Tensor tensor;
    union {
      dlpack::VersionedTensor versioned;
      dlpack::ManagedTensor managed;
    };
  };
  struct Free {
    void operator()(void* block) const { std::free(block); }
  };
  // Translates torch's error: it reports its own failed allocations as RuntimeError.
  [[noreturn]] static void throw_refusal() {
    if (PyErr_ExceptionMatches(PyExc_RuntimeError)) {
      PyObject *type, *value, *trace;
      PyErr_Fetch(&type, &value, &trace);
      PyErr_NormalizeException(&type, &value, &trace);
      PyObject* const text = value == nullptr ? nullptr : PyObject_Str(value);
      const char* const words = text == nullptr ? nullptr : PyUnicode_AsUTF8(text);
      const bool no_memory = words == nullptr || std::strstr(words, "bad_alloc") != nullptr;
      Py_XDECREF(text);
      PyErr_Restore(type, value, trace);
      if (no_memory) {
        PyErr_Clear();
        throw emp::OutOfMemory(int64_t(sizeof(Block)));
      }
    }
    throw py::error_already_set();
  }
  template <class T>
  static void free_context(T* tensor) {
    if (static_cast<Block*>(tensor->context)->handed_over) std::free(tensor->context);
  }
  static int64_t bytes_of(dlpack::DataType dtype, int64_t rows, const int64_t* shape, int dims) {
    int64_t bytes = dims > 0 ? rows : 1;
    for (int dim = 1; dim < dims; ++dim)
      if (shape[dim] == 0) return 0;
    for (int dim = 1; dim < dims && bytes > 0; ++dim)
      bytes = emp::checked_product(bytes, shape[dim]);
    return emp::checked_product(bytes, int64_t(dtype.bits) * dtype.lanes / 8);
  }
  std::unique_ptr<Block, Free> block_;
};

template <class T>
constexpr dlpack::DataType dtype_of();
template <>
constexpr dlpack::DataType dtype_of<float>() {
  return {dlpack::kFloat, 32, 1};
}
template <>
constexpr dlpack::DataType dtype_of<int64_t>() {
  return {dlpack::kInt, 64, 1};
}
template <>
constexpr dlpack::DataType dtype_of<int32_t>() {
  return {dlpack::kInt, 32, 1};
}
template <>
constexpr dlpack::DataType dtype_of<bool>() {
  return {dlpack::kBool, 8, 1};
}

// A result with elements of type T.
template <class T>
class Result : public NewTensor {
 public:
  explicit Result(std::initializer_list<int64_t> shape)
      : NewTensor(dtype_of<T>(), shape.begin(), int(shape.size())) {}
  explicit Result(int64_t size) : Result({size}) {}
  Result() : Result(std::initializer_list<int64_t>{}) {}  // of shape ()
  explicit Result(const Tensor& like) : NewTensor(dtype_of<T>(), like.shape(), like.dims()) {}

  operator T*() const { return data<T>(); }

  // A copy of the first of the (size,) elements.
  Result first(int64_t size) const {
    Result copy(size);
    std::copy_n(data<T>(), size, copy.template data<T>());
    return copy;
  }
};

// Sets `tensor` and returns true if `object` is a plain torch.Tensor in CPU memory, not lazily
// negated or conjugated.
inline bool is_plain(PyObject* object, Tensor& tensor) {
  if (Py_TYPE(object) != torch.tensor_type || !tensor.view(object)) return false;
  const dlpack::DataType dtype = tensor.dtype();
  const bool known = dtype.code <= dlpack::kFloat || dtype.code == dlpack::kBFloat ||
                     dtype.code == dlpack::kBool || tensor.is_complex();
  return known && dtype.lanes == 1 && tensor.on_cpu() && !tensor.is_read_otherwise(object);
}

}  // namespace bindings

// None means no tensor.
template <class T>
struct tensor_caster {
  PYBIND11_TYPE_CASTER(T, pybind11::detail::const_name("torch.Tensor"));

  bool load(pybind11::handle source, bool) {
    if (source.is_none()) return false;
    value = T(source);
    return true;
  }
};
template <>
struct pybind11::detail::type_caster<bindings::Tensor> : tensor_caster<bindings::Tensor> {};
template <>
struct pybind11::detail::type_caster<bindings::Dense> : tensor_caster<bindings::Dense> {};
template <>
struct pybind11::detail::type_caster<bindings::Written> : tensor_caster<bindings::Written> {};
