// Functions that serve what most calls pass, and return None where any of it is something else, for
// Python to look into: of a small batch the checks there would be most of the call. They are plain
// C functions, because of the smallest ones pybind11's call would be a tenth.
#pragma once

#include <pybind11/pybind11.h>

#include <new>

namespace bindings {

namespace py = pybind11;

// Takes arguments, as many as it wants, and returns what it serves, or null for None.
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
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// `kFunction` as Python calls it.
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
