// Writes that go past the caches, of what nobody reads soon.
#pragma once

#include <cstdint>

namespace emp {

// Copies bytes; other threads, and this one, see them after stream_fence(). Where the processor has
// no such writes, a plain copy.
void write_past_caches(void* to, const void* from, int64_t bytes);
void stream_fence();

}  // namespace emp
