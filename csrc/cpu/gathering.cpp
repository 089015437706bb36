#include "gathering.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "threads.h"

namespace emp {
namespace {

constexpr int64_t kTaskBytes = 256 * 1024;
constexpr int64_t kAhead = 16;  // rows prefetched ahead: about a memory latency of copies
// Indices looked at in one go: few enough to stay in the first cache until their rows are copied.
constexpr int64_t kChecked = 1024;

// By signs: of a negative index, or of what is left between an index and the last row. Branchless,
// and vectorised where no instruction compares 64 bits.
bool any_bad_index(const int64_t* indices, int64_t begin, int64_t end, int64_t size) {
  const uint64_t last = uint64_t(size) - 1;
  uint64_t signs = 0;
  for (int64_t k = begin; k < end; ++k)
    signs |= uint64_t(indices[k]) | (last - uint64_t(indices[k]));
  return begin < end && (size == 0 || int64_t(signs) < 0);
}

// Rows of one number. They may be unaligned, and nothing written changes what is read, which the
// compiler has to be told of bytes.
template <class Unit>
void gather_units(const GatherRows& t, const int64_t* __restrict indices, int64_t begin,
                  int64_t end) {
  const char* __restrict source = t.source;
  char* __restrict out = t.out;
  const int64_t stride = t.stride_bytes;
  const auto copy = [&](int64_t k, int64_t from) {
    std::memcpy(out + k * int64_t(sizeof(Unit)), source + from, sizeof(Unit));
  };
  if (stride == sizeof(Unit))  // a scale of the address instead of a multiplication
    for (int64_t k = begin; k < end; ++k) copy(k, indices[k] * int64_t(sizeof(Unit)));
  else
    for (int64_t k = begin; k < end; ++k) copy(k, indices[k] * stride);
}

// Rows [begin, end) of the output.
void gather_rows(const GatherRows& t, const int64_t* indices, int64_t begin, int64_t end) {
  switch (t.row_bytes) {
    case 0:
      return;
    case 1:
      return gather_units<char[1]>(t, indices, begin, end);
    case 2:
      return gather_units<char[2]>(t, indices, begin, end);
    case 4:
      return gather_units<char[4]>(t, indices, begin, end);
    case 8:
      return gather_units<char[8]>(t, indices, begin, end);
    case 16:
      return gather_units<char[16]>(t, indices, begin, end);
  }
  const bool dense = t.stride_bytes == t.row_bytes;
  for (int64_t k = begin; k < end;) {
    int64_t run = 1;
    if (dense)
      while (k + run < end && indices[k + run] == indices[k] + run) ++run;
    if (k + run + kAhead < end) {
      const char* next = t.source + indices[k + run + kAhead] * t.stride_bytes;
      for (int64_t line = 0; line < std::min<int64_t>(t.row_bytes, 128); line += 64)
        __builtin_prefetch(next + line);
    }
    std::memcpy(t.out + k * t.row_bytes, t.source + indices[k] * t.stride_bytes,
                size_t(run * t.row_bytes));
    k += run;
  }
}

}  // namespace

int64_t first_bad_index(const int64_t* indices, int64_t count, int64_t size) {
  for (int64_t start = 0; start < count; start += kChecked) {
    const int64_t end = std::min(count, start + kChecked);
    if (!any_bad_index(indices, start, end, size)) continue;
    for (int64_t k = start; k < end; ++k)
      if (uint64_t(indices[k]) >= uint64_t(size)) return k;
  }
  return -1;
}

bool gather(const GatherRows* tensors, int num_tensors, const int64_t* indices, int64_t count,
            int threads) {
  int64_t row_bytes = 0, rows = INT64_MAX;
  for (int i = 0; i < num_tensors; ++i) {
    row_bytes += tensors[i].row_bytes;
    rows = std::min(rows, tensors[i].rows);
  }
  if (count == 0 || num_tensors == 0) return true;
  const int64_t touched = sizeof(int64_t) + 2 * row_bytes;
  threads = useful_threads(threads, count * touched);
  // A task is some rows of all tensors, so that small tensors cost no task of their own.
  int64_t step = count;
  if (threads > 1)
    step = std::clamp<int64_t>(2 * kTaskBytes / touched, 1, (count + threads - 1) / threads);
  std::atomic<bool> valid{true};
  parallel_tasks(threads, (count + step - 1) / step, [&](int64_t task, int) {
    const int64_t stop = std::min(count, (task + 1) * step);
    for (int64_t begin = task * step; begin < stop; begin += kChecked) {
      const int64_t end = std::min(stop, begin + kChecked);
      if (any_bad_index(indices, begin, end, rows)) valid.store(false, std::memory_order_relaxed);
      if (!valid.load(std::memory_order_relaxed)) return;
      for (int i = 0; i < num_tensors; ++i) gather_rows(tensors[i], indices, begin, end);
    }
  });
  return valid.load();
}

}  // namespace emp
