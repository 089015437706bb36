#include "gathering.h"

#include <algorithm>
#include <cstring>

#include "threads.h"

namespace emp {
namespace {

constexpr int64_t kTaskBytes = 256 * 1024;
constexpr int64_t kAhead = 16;  // rows prefetched ahead: about a memory latency of copies

template <class Unit>
void gather_units(const GatherRows& t, const int64_t* indices, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; ++k)
    std::memcpy(t.out + k * int64_t(sizeof(Unit)), t.source + indices[k] * t.stride_bytes,
                sizeof(Unit));
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
  constexpr int64_t kStride = 1024;  // a branchless, vectorised look at many indices at a time
  for (int64_t start = 0; start < count; start += kStride) {
    const int64_t end = std::min(count, start + kStride);
    bool bad = false;
    for (int64_t k = start; k < end; ++k) bad |= uint64_t(indices[k]) >= uint64_t(size);
    for (int64_t k = start; bad && k < end; ++k)
      if (uint64_t(indices[k]) >= uint64_t(size)) return k;
  }
  return -1;
}

void gather(const GatherRows* tensors, int num_tensors, const int64_t* indices, int64_t count,
            int threads) {
  int64_t row_bytes = 0;
  for (int i = 0; i < num_tensors; ++i) row_bytes += tensors[i].row_bytes;
  if (count == 0 || row_bytes == 0) return;
  threads = useful_threads(threads, 2 * count * row_bytes);
  // A task is some rows of all tensors, so that small tensors cost no task of their own.
  int64_t step = count;
  if (threads > 1)
    step = std::clamp<int64_t>(kTaskBytes / row_bytes, 1, (count + threads - 1) / threads);
  parallel_tasks(threads, (count + step - 1) / step, [&](int64_t task, int) {
    for (int i = 0; i < num_tensors; ++i)
      gather_rows(tensors[i], indices, task * step, std::min(count, (task + 1) * step));
  });
}

}  // namespace emp
