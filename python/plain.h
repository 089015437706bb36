// Fast paths that handle ordinary arguments and return None for anything else, which is left to
// Python: for a small batch the checks there would take most of the call. They are plain C
// functions, because pybind11's overhead would be a tenth of the smallest calls.
#pragma once

#include <pybind11/pybind11.h>

#include <new>

#include "cpu/threads.h"

namespace bindings {

namespace py = pybind11;

// Takes any number of arguments and returns the result, or null for None.
using PlainFunction = py::object (*)(PyObject* const* arguments);

template <PlainFunction kFunction, Py_ssize_t kArguments>
PyObject* call_plain(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != kArguments)
    return PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", kArguments, count);
  try {
    py::object served = kFunction(arguments);
    if (!served) served = py::none();
    return served.release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::bad_alloc& error) {
    PyErr_SetString(PyExc_MemoryError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// Torch's settings, queried only if needed: each query takes a twentieth of a small call.
struct Settings {
  py::handle get_num_threads, is_grad_enabled, forward_ad;

  int threads() const { return get_num_threads().cast<int>(); }
  // For work that touches so many bytes.
  int threads(int64_t bytes) const { return bytes < 2 * emp::kBytesPerThread ? 1 : threads(); }
  // Whether autograd is recording.
  bool grad() const { return is_grad_enabled().cast<bool>(); }
  // Like backends.forward_mode.
  bool forward_mode() const {
    static PyObject* const level = PyUnicode_InternFromString("_current_level");
    PyObject* const found = PyDict_GetItemWithError(forward_ad.ptr(), level);
    return found == nullptr || PyLong_AsLong(found) >= 0;
  }
};
inline Settings settings;

// torch.get_num_threads, torch.is_grad_enabled, and the variables of torch.autograd.forward_ad.
inline void use_settings(const py::function& get_num_threads, const py::function& is_grad_enabled,
                         const py::dict& forward_ad) {
  settings = {get_num_threads.inc_ref(), is_grad_enabled.inc_ref(), forward_ad.inc_ref()};
}

// `kFunction` with Python's calling convention.
template <PlainFunction kFunction, Py_ssize_t kArguments>
py::object plain_function(const char* name) {
  using Erased = void (*)();
  static PyMethodDef method = {
      name,
      reinterpret_cast<PyCFunction>(reinterpret_cast<Erased>(&call_plain<kFunction, kArguments>)),
      METH_FASTCALL, nullptr};
  return py::reinterpret_steal<py::object>(PyCFunction_New(&method, nullptr));
}

}  // namespace bindings
