#include "gathering.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <type_traits>

#include "racing.h"
#include "threads.h"

namespace emp {
namespace {

constexpr int64_t kTaskBytes = 256 * 1024;
constexpr int64_t kAhead = 16;  // rows prefetched ahead, about one memory latency
// Indices checked at a time: few enough to stay in the L1 cache until their rows are copied.
constexpr int64_t kChecked = 1024;

// By the signs of the index and of its distance to the last row. Branchless, and vectorised even
// without 64-bit comparisons.
EMP_MAY_RACE bool any_bad_index(const int64_t* indices, int64_t begin, int64_t end, int64_t size) {
  const uint64_t last = uint64_t(size) - 1;
  uint64_t signs = 0;
  for (int64_t k = begin; k < end; ++k)
    signs |= uint64_t(indices[k]) | (last - uint64_t(indices[k]));
  return begin < end && (size == 0 || int64_t(signs) < 0);
}

// Rows of one to two units: copies the first and the last unit of each, which may overlap, as soon
// as the index is known to be in range: a separate pass over the indices would take as long as the
// copies. Units may be unaligned, and writes never alias reads, which the compiler must be told for
// bytes.
template <class Unit>
EMP_MAY_RACE bool gather_units(const GatherRows& t, const int64_t* __restrict indices,
                               int64_t begin, int64_t end) {
  using Size = std::integral_constant<int64_t, sizeof(Unit)>;
  const char* __restrict source = t.source;
  char* __restrict out = t.out;
  const uint64_t rows = uint64_t(t.rows);
  const auto gather = [&](auto row_bytes, auto stride) EMP_MAY_RACE {
    const int64_t last = row_bytes - Size();
#pragma GCC unroll 4
    for (int64_t k = begin; k < end; ++k) {
      const int64_t index = read_once(indices + k);
      if (uint64_t(index) >= rows) return false;
      const char* const from = source + index * stride;
      char* const to = out + k * row_bytes;
      std::memcpy(to, from, sizeof(Unit));
      if (row_bytes != Size()) std::memcpy(to + last, from + last, sizeof(Unit));
    }
    return true;
  };
  if (t.row_bytes != Size()) return gather(t.row_bytes, t.stride_bytes);
  if (t.stride_bytes != Size()) return gather(Size(), t.stride_bytes);
  return gather(Size(), Size());  // a constant, so that addresses are scaled without multiplication
}

// Rows large enough for lookahead: runs are copied as one block, and later rows, up to `stop`, are
// prefetched, which never faults and so needs no checked index.
EMP_MAY_RACE bool gather_runs(const GatherRows& t, const int64_t* indices, int64_t begin,
                              int64_t end, int64_t stop) {
  const bool dense = t.stride_bytes == t.row_bytes;
  for (int64_t k = begin; k < end;) {
    const int64_t index = read_once(indices + k);
    if (uint64_t(index) >= uint64_t(t.rows)) return false;
    int64_t run = 1;
    if (dense)
      while (k + run < end && indices[k + run] == index + run) ++run;
    if (index > t.rows - run) return false;
    if (k + run + kAhead < stop) {
      const uint64_t next = reinterpret_cast<uintptr_t>(t.source) +
                            uint64_t(indices[k + run + kAhead]) * uint64_t(t.stride_bytes);
      for (int64_t line = 0; line < std::min<int64_t>(t.row_bytes, 128); line += 64)
        __builtin_prefetch(reinterpret_cast<const void*>(next + uint64_t(line)));
    }
    std::memcpy(t.out + k * t.row_bytes, t.source + index * t.stride_bytes,
                size_t(run * t.row_bytes));
    k += run;
  }
  return true;
}

// Writes rows [begin, end) of the output, of [begin, stop) that follow; returns false, with the
// output unspecified, if an index is out of range.
bool gather_rows(const GatherRows& t, const int64_t* indices, int64_t begin, int64_t end,
                 int64_t stop) {
  const int64_t bytes = t.row_bytes;
  if (bytes == 0) return !any_bad_index(indices, begin, end, t.rows);
  if (bytes > 64) return gather_runs(t, indices, begin, end, stop);
  if (bytes >= 32) return gather_units<char[32]>(t, indices, begin, end);
  if (bytes >= 16) return gather_units<char[16]>(t, indices, begin, end);
  if (bytes >= 8) return gather_units<char[8]>(t, indices, begin, end);
  if (bytes >= 4) return gather_units<char[4]>(t, indices, begin, end);
  if (bytes >= 2) return gather_units<char[2]>(t, indices, begin, end);
  return gather_units<char[1]>(t, indices, begin, end);
}

}  // namespace

EMP_MAY_RACE int64_t first_bad_index(const int64_t* indices, int64_t count, int64_t size) {
  for (int64_t start = 0; start < count; start += kChecked) {
    const int64_t end = std::min(count, start + kChecked);
    if (!any_bad_index(indices, start, end, size)) continue;
    for (int64_t k = start; k < end; ++k)
      if (uint64_t(indices[k]) >= uint64_t(size)) return k;
  }
  return -1;
}

int64_t gathered_bytes(const GatherRows* tensors, int num_tensors, int64_t count) {
  double bytes = sizeof(int64_t);
  for (int i = 0; i < num_tensors; ++i) bytes += 2 * double(tensors[i].row_bytes);
  return int64_t(std::min(double(count) * bytes, 0x1p62));
}

BadIndex gather(const GatherRows* tensors, int num_tensors, const int64_t* indices, int64_t count,
                int threads) {
  constexpr BadIndex kNone{0, -1};
  if (count == 0 || num_tensors == 0) return kNone;
  const int64_t bytes = gathered_bytes(tensors, num_tensors, count);
  threads = useful_threads(threads, bytes);
  // A task is some rows of all tensors, so that small tensors need no separate task.
  int64_t step = count;
  if (threads > 1)
    step =
        std::clamp<int64_t>(2 * kTaskBytes / (bytes / count), 1, (count + threads - 1) / threads);
  std::atomic<int64_t> bad{-1};  // start of a block with an invalid index
  parallel_tasks(threads, (count + step - 1) / step, [&](int64_t task, int) {
    const int64_t stop = std::min(count, (task + 1) * step);
    for (int64_t begin = task * step; begin < stop; begin += kChecked) {
      const int64_t end = std::min(stop, begin + kChecked);
      for (int i = 0; i < num_tensors; ++i)
        if (!gather_rows(tensors[i], indices, begin, end, stop))
          bad.store(begin, std::memory_order_relaxed);
      if (bad.load(std::memory_order_relaxed) >= 0) return;
    }
  });
  if (bad < 0) return kNone;
  for (int i = 0; i < num_tensors; ++i) {
    const int64_t position = first_bad_index(indices, count, tensors[i].rows);
    if (position >= 0) return {i, position};
  }
  return {0, bad};  // another thread has made it valid since
}

}  // namespace emp
