// Row gather: out[k] = source[indices[k]] for several tensors at once.
#pragma once

#include <cstdint>

namespace emp {

// `rows` rows of row_bytes contiguous bytes each, `stride_bytes` apart in the source (which may be
// mapped from a file); the output is contiguous and does not overlap the source.
struct GatherRows {
  const char* source;
  char* out;
  int64_t rows, row_bytes, stride_bytes;
};

// First position k with indices[k] outside [0, size), or -1.
int64_t first_bad_index(const int64_t* indices, int64_t count, int64_t size);

// How many bytes a gather of `count` rows touches, at most 2^63 - 1.
int64_t gathered_bytes(const GatherRows* tensors, int num_tensors, int64_t count);

struct BadIndex {
  int tensor;
  int64_t position;

  explicit operator bool() const { return position >= 0; }
};

// Any order, duplicates allowed; runs of wide rows are copied as one block. An index out of a
// source's range is returned, and the outputs then hold anything: of the first such source the
// first position. Another thread may write indices meanwhile: what is checked is what is used.
BadIndex gather(const GatherRows* tensors, int num_tensors, const int64_t* indices, int64_t count,
                int threads);

}  // namespace emp
