#include "labels.h"

#include "racing.h"

namespace emp {
namespace {

// Calls f with a typed pointer to the labels.
template <class F>
decltype(auto) with_pointer(const Labels& labels, F&& f) {
  switch (labels.dtype) {
    case IntDtype::kInt32:
      return f(static_cast<const int32_t*>(labels.data));
    case IntDtype::kInt16:
      return f(static_cast<const int16_t*>(labels.data));
    case IntDtype::kInt8:
      return f(static_cast<const int8_t*>(labels.data));
    case IntDtype::kUInt8:
      return f(static_cast<const uint8_t*>(labels.data));
    case IntDtype::kUInt16:
      return f(static_cast<const uint16_t*>(labels.data));
    case IntDtype::kUInt32:
      return f(static_cast<const uint32_t*>(labels.data));
    case IntDtype::kUInt64:  // beyond int64 negative, also out of range
    case IntDtype::kInt64:
      break;
  }
  return f(static_cast<const int64_t*>(labels.data));
}

}  // namespace

EMP_MAY_RACE void read_labels(const Labels& labels, int64_t begin, int64_t end, int64_t* out) {
  with_pointer(labels, [&](const auto* label) EMP_MAY_RACE {
    for (int64_t row = begin; row < end; ++row) out[row - begin] = int64_t(read_once(label + row));
  });
}

int64_t first_bad_label(const Labels& labels, int64_t rows, int64_t classes) {
  return with_pointer(labels, [&](const auto* label) -> int64_t {
    constexpr int64_t kStride = 1024;  // a branchless, vectorised check of many labels at a time
    for (int64_t start = 0; start < rows; start += kStride) {
      const int64_t end = std::min(rows, start + kStride);
      bool bad = false;
      for (int64_t i = start; i < end; ++i) bad |= uint64_t(int64_t(label[i])) >= uint64_t(classes);
      if (!bad) continue;
      for (int64_t i = start; i < end; ++i) {
        const int64_t y = int64_t(label[i]);
        if (uint64_t(y) >= uint64_t(classes) && !labels.ignores(y)) return i;
      }
    }
    return -1;
  });
}

}  // namespace emp
