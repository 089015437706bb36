// Fast paths that handle ordinary arguments and return None for anything else, which is left to
// Python: for a small batch the checks there would take most of the call. They are plain C
// functions, because pybind11's overhead would be a tenth of the smallest calls.
#pragma once

#include <pybind11/pybind11.h>

#include <new>

#include "cpu/threads.h"

namespace bindings {

namespace py = pybind11;

// Torch's settings, queried only if needed: each query takes a twentieth of a small call.
struct Settings {
  py::handle get_num_threads, is_grad_enabled, forward_ad;
  py::handle is_tracing, mode_count, recording, graph_task;

  int threads() const { return int(integer(get_num_threads)); }
  // For work that touches so many bytes.
  int threads(int64_t bytes) const { return bytes < 2 * emp::kBytesPerThread ? 1 : threads(); }
  // Whether autograd is recording.
  bool grad() const { return holds(is_grad_enabled); }
  // Like backends.forward_mode.
  bool forward_mode() const {
    static PyObject* const level = PyUnicode_InternFromString("_current_level");
    PyObject* const found = PyDict_GetItemWithError(forward_ad.ptr(), level);
    return found == nullptr || PyLong_AsLong(found) >= 0;
  }
  // Whether a tracer records operations. Compilers do not get here.
  bool records() const {
    return holds(is_tracing) || (integer(mode_count) > 0 && holds(recording));
  }
  // Like state.recomputing.
  bool recomputes() const { return integer(graph_task) != -1; }

 private:
  static bool holds(py::handle function) { return call(function).ptr() == Py_True; }
  static long integer(py::handle function) { return PyLong_AsLong(call(function).ptr()); }
  static py::object call(py::handle function) {
    PyObject* const found = PyObject_CallNoArgs(function.ptr());
    if (found == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(found);
  }
};
inline Settings settings;

// torch.get_num_threads, torch.is_grad_enabled, the variables of torch.autograd.forward_ad,
// torch._C's _is_tracing, _len_torch_dispatch_stack and _current_graph_task_id, and
// tracing.recording.
inline void use_settings(const py::function& get_num_threads, const py::function& is_grad_enabled,
                         const py::dict& forward_ad, const py::function& is_tracing,
                         const py::function& mode_count, const py::function& graph_task,
                         const py::function& recording) {
  settings = {get_num_threads.inc_ref(), is_grad_enabled.inc_ref(), forward_ad.inc_ref(),
              is_tracing.inc_ref(),      mode_count.inc_ref(),      recording.inc_ref(),
              graph_task.inc_ref()};
}

// Takes any number of arguments and returns the result, or null for None.
using PlainFunction = py::object (*)(PyObject* const* arguments);

template <PlainFunction kFunction, Py_ssize_t kArguments>
PyObject* call_plain(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != kArguments)
    return PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", kArguments, count);
  try {
    py::object served;
    if (!settings.records()) served = kFunction(arguments);
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
