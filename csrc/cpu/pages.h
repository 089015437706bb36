// Huge pages for large new results: the page fault at the first write to a small page costs more
// than computing its rows.
#pragma once

#include <cstdint>

namespace emp {

// Requests huge pages for the whole pages of a newly allocated block. Does nothing for small blocks
// and on systems without huge pages.
void prefer_huge_pages(void* block, int64_t bytes);

}  // namespace emp
