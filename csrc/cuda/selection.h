// Exact top-k on the device, the counterpart of cpu/selection.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emp {

// Bytes of workspace that select(n) needs. Both functions return an error message, or null.
const char* select_workspace(int64_t n, size_t* bytes);

// Writes the ascending positions of the `count` highest of n scores, 1 <= count <= n, on the CUDA
// stream `stream`.
// Ties go to the lowest position, -0.0 equals +0.0, NaN ranks below -inf. All pointers are to
// device memory, `workspace` 256-byte aligned; no memory is allocated and there is no
// synchronisation with the host.
const char* select(const float* scores, int64_t n, int64_t count, int64_t* indices, void* workspace,
                   size_t workspace_bytes, void* stream);

}  // namespace emp
