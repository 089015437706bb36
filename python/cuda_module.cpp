// emp_kernels._cuda: the CUDA kernels for Python. Tensors and streams are passed as addresses; the
// caller has checked types, shapes and devices, made the tensors' device current and allocated all
// memory.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/gathering.h"
#include "cuda/selection.h"

namespace py = pybind11;
using Address = uintptr_t;

namespace bindings {

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void check(const char* error, const char* function) {
  if (error != nullptr) throw std::runtime_error(std::string(function) + ": " + error);
}

// Each tensor is (source, out, row_bytes, stride_bytes, rows).
using TensorArgs = std::tuple<Address, Address, int64_t, int64_t, int64_t>;

void gather(const std::vector<TensorArgs>& args, Address indices, int64_t count, Address stream) {
  std::vector<emp::GatherTensor> tensors;
  tensors.reserve(args.size());
  for (const auto& [source, out, row_bytes, stride, rows] : args)
    tensors.push_back({at<const void>(source), at<void>(out), row_bytes, stride, rows});
  check(emp::gather(tensors.data(), int(tensors.size()), at<const int64_t>(indices), count,
                    at<void>(stream)),
        "gather");
}

size_t select_workspace(int64_t n) {
  size_t bytes = 0;
  check(emp::select_workspace(n, &bytes), "select");
  return bytes;
}

void select(Address scores, int64_t n, int64_t count, Address indices, Address workspace,
            size_t workspace_bytes, Address stream) {
  check(emp::select(at<const float>(scores), n, count, at<int64_t>(indices), at<void>(workspace),
                    workspace_bytes, at<void>(stream)),
        "select");
}

}  // namespace bindings

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "CUDA kernels of emp_kernels";
  module.def("gather", &bindings::gather);
  module.def("select_workspace", &bindings::select_workspace);
  module.def("select", &bindings::select);
}
