#include "pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace emp {

void prefer_huge_pages(void* block, int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t kWorthwhile = int64_t(4) << 20;
  constexpr uintptr_t kPage = 4096;
  if (bytes < kWorthwhile) return;
  const uintptr_t start = (reinterpret_cast<uintptr_t>(block) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(block) + uintptr_t(bytes)) & ~(kPage - 1);
  madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);  // may be refused
#else
  (void)block;
  (void)bytes;
#endif
}

}  // namespace emp
