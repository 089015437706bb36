// Results of several tensors: instances of the NamedTuples of results.py.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <utility>

#include "tensors.h"

namespace bindings {

// The classes.
inline PyTypeObject *Scores, *SampleStatistics, *Selection;

inline void use_results(const py::type& scores, const py::type& statistics,
                        const py::type& selection) {
  const auto keep = [](py::type type) {
    return reinterpret_cast<PyTypeObject*>(type.release().ptr());
  };
  Scores = keep(scores), SampleStatistics = keep(statistics), Selection = keep(selection);
}

// The elements of named_tuple: result tensors, or objects unchanged.
inline py::object item(NewTensor& result) { return result.tensor(); }
inline py::object item(py::object& object) { return std::move(object); }

// An instance of a NamedTuple class, made directly by tuple's constructor without Python code.
template <class... Items>
py::object named_tuple(PyTypeObject* type, Items&... items) {
  std::array<py::object, sizeof...(items)> objects{item(items)...};
  auto made = py::reinterpret_steal<py::object>(type->tp_alloc(type, Py_ssize_t(objects.size())));
  if (!made) throw py::error_already_set();
  for (size_t i = 0; i < objects.size(); ++i)
    PyTuple_SET_ITEM(made.ptr(), Py_ssize_t(i), objects[i].release().ptr());
  return made;
}

}  // namespace bindings
