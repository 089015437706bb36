// Row gather: out[k] = source[indices[k]] for several tensors at once.
#pragma once

#include <cstdint>

namespace emp {

// `rows` rows of row_bytes contiguous bytes, `stride_bytes` apart in the source (which may be
// memory-mapped); the output is contiguous and does not overlap the source.
struct GatherRows {
  const char* source;
  char* out;
  int64_t rows, row_bytes, stride_bytes;
};

// First position k with indices[k] outside [0, size), or -1.
int64_t first_bad_index(const int64_t* indices, int64_t count, int64_t size);

// Number of bytes that a gather of `count` rows touches, at most 2^63 - 1.
int64_t gathered_bytes(const GatherRows* tensors, int num_tensors, int64_t count);

struct BadIndex {
  int tensor;
  int64_t position;

  explicit operator bool() const { return position >= 0; }
};

// Any order, duplicates allowed; runs of wide rows are copied as one block. For an index out of
// range, the first such source and its first such position are returned, and the outputs are
// unspecified. Another thread may write indices concurrently: each is read once, checked and used.
BadIndex gather(const GatherRows* tensors, int num_tensors, const int64_t* indices, int64_t count,
                int threads);

}  // namespace emp
