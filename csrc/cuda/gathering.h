// Gathers rows of many tensors in one launch, the counterpart of cpu/gathering.h.
#pragma once

#include <cstdint>

namespace emp {

// One tensor: out[k] = source[indices[k]], rows of row_bytes, `stride` bytes apart in the source
// and contiguous in `out`. The two must not overlap.
struct GatherTensor {
  const void* source;
  void* out;
  int64_t row_bytes;
  int64_t stride;
  int64_t rows;
};

// Gathers `count` rows of each of `tensors` on the CUDA stream `stream`; no memory is allocated and
// there is no synchronisation. Returns an error message, or null. The indices are on the device, in
// any order, with duplicates allowed; for one outside [0, rows) the output row is zero and nothing
// is read.
const char* gather(const GatherTensor* tensors, int num_tensors, const int64_t* indices,
                   int64_t count, void* stream);

}  // namespace emp
