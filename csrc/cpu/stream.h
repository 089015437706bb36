// Non-temporal writes, for data that is not read soon.
#pragma once

#include <cstdint>

namespace emp {

// Copies bytes; they are visible to all threads after stream_fence(). A plain copy on processors
// without such stores.
void write_past_caches(void* to, const void* from, int64_t bytes);
void stream_fence();

}  // namespace emp
