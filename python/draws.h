// EMPSampler's iterator over an epoch's ids, which counts each id when it is drawn. A native type
// because it runs once per sample of the data set: no Python code, no list of ids and no pybind11
// calls between the loop and the count.
#pragma once

#include <pybind11/pybind11.h>
#include <structmember.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "tensors.h"

namespace bindings {

namespace py = pybind11;

constexpr int64_t kAhead = 24;  // prefetch distance of the counts

struct DrawsOf {
  py::object ids_owner;
  const int64_t* ids;  // (size,)
  int64_t size;
  // int64: how many are drawn, whether one more was asked for, and the position up to which the
  // counts are good, which others set to 0 where counts have moved.
  py::buffer_info progress;
  int64_t chunk;          // ids between two calls of begin
  py::object begin, end;  // begin(position) returns the counts (N,) int32, or None
  py::object counts_owner;
  int32_t* counts = nullptr;  // (samples,), of the running chunk
  uint64_t samples = 0;

  // The next id, or null at the end or with an error set.
  PyObject* next() {
    int64_t& position = static_cast<int64_t*>(progress.ptr)[0];
    if (position >= static_cast<int64_t*>(progress.ptr)[2] && !turn(position)) return nullptr;
    const int64_t* const id = ids + position;
    if (counts != nullptr) {
      if (uint64_t(*id) >= samples)
        return PyErr_Format(PyExc_IndexError, "id %lld is out of range for %llu samples",
                            (long long)*id, (unsigned long long)samples);
      if (position + kAhead < size && uint64_t(id[kAhead]) < samples)
        __builtin_prefetch(counts + id[kAhead], 1);
      ++counts[*id];
    }
    ++position;
    return PyLong_FromLongLong(*id);
  }

  // Continues with the next chunk; false at the end. The callbacks may call this iterator.
  bool turn(const int64_t& position) {
    int64_t& stopped = static_cast<int64_t*>(progress.ptr)[1];
    if (stopped) return false;
    if (position >= size) {
      stopped = 1;
      end();
      return false;
    }
    py::object found = begin(position);
    counts = nullptr;
    if (!found.is_none()) {
      const Written tensor(found);
      counts = tensor.data<int32_t>();
      samples = uint64_t(tensor.size(0));
    }
    counts_owner = std::move(found);
    static_cast<int64_t*>(progress.ptr)[2] = std::min(position + chunk, size);
    return position < size;
  }
};

struct Draws {
  PyObject_HEAD;
  PyObject* weak;
  DrawsOf* of;
};

inline PyObject* draws_next(PyObject* self) {
  DrawsOf* const of = reinterpret_cast<Draws*>(self)->of;
  if (of == nullptr) return nullptr;
  try {
    return of->next();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

inline int draws_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  if (DrawsOf* const of = reinterpret_cast<Draws*>(self)->of; of != nullptr) {
    Py_VISIT(of->begin.ptr());
    Py_VISIT(of->end.ptr());
  }
  return 0;
}

inline int draws_clear(PyObject* self) {
  delete std::exchange(reinterpret_cast<Draws*>(self)->of, nullptr);
  return 0;
}

inline void draws_dealloc(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  if (reinterpret_cast<Draws*>(self)->weak != nullptr) PyObject_ClearWeakRefs(self);
  draws_clear(self);
  type->tp_free(self);
  Py_DECREF(type);
}

inline PyTypeObject* draws_type() {
  static PyMemberDef members[] = {
      {"__weaklistoffset__", T_PYSSIZET, offsetof(Draws, weak), READONLY, nullptr}, {}};
  static PyType_Slot slots[] = {{Py_tp_iter, (void*)PyObject_SelfIter},
                                {Py_tp_iternext, (void*)draws_next},
                                {Py_tp_traverse, (void*)draws_traverse},
                                {Py_tp_clear, (void*)draws_clear},
                                {Py_tp_dealloc, (void*)draws_dealloc},
                                {Py_tp_members, members},
                                {}};
  static PyType_Spec spec = {
      "emp_kernels._cpu.Draws", sizeof(Draws), 0,
      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
  static PyObject* const type = PyType_FromSpec(&spec);
  if (type == nullptr) throw py::error_already_set();
  return reinterpret_cast<PyTypeObject*>(type);
}

// See emp_kernels.backends.cpu.draws.
inline py::object draws(const py::object& ids, const py::buffer& progress, int64_t chunk,
                        const py::object& begin, const py::object& end) {
  const Tensor order(ids);
  auto of = std::make_unique<DrawsOf>();
  of->ids_owner = ids;
  of->ids = order.data<const int64_t>();
  of->size = order.size(0);
  of->progress = progress.request(true);
  of->chunk = chunk;
  of->begin = begin;
  of->end = end;
  PyTypeObject* const type = draws_type();
  PyObject* const self = type->tp_alloc(type, 0);  // zeroed
  if (self == nullptr) throw py::error_already_set();
  reinterpret_cast<Draws*>(self)->of = of.release();
  return py::reinterpret_steal<py::object>(self);
}

}  // namespace bindings
