// Huge pages for large fresh results: the first writing of a small page costs more than the rows
// that go into it.
#pragma once

#include <cstdint>

namespace emp {

// Asks for huge pages in the whole pages of a block that was just allocated. Blocks too small to
// profit, and systems without huge pages, are left alone.
void prefer_huge_pages(void* block, int64_t bytes);

}  // namespace emp
