#include "stream.h"

#include <algorithm>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace emp {

void write_past_caches(void* to, const void* from, int64_t bytes) {
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
#if defined(__SSE2__)
  const int64_t past = int64_t(reinterpret_cast<uintptr_t>(out) % 16);
  const int64_t head = std::min<int64_t>(bytes, past == 0 ? 0 : 16 - past);
  std::memcpy(out, in, size_t(head));
  out += head, in += head, bytes -= head;
  for (; bytes >= 16; out += 16, in += 16, bytes -= 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(out),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
#endif
  std::memcpy(out, in, size_t(bytes));
}

void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace emp
