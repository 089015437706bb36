#include "systematic.h"

namespace emp {

void systematic(const int64_t* units, const int64_t* order, int64_t n, int64_t left, int64_t whole,
                int64_t first, bool* drawn) {
  constexpr int64_t kAhead = 16;  // prefetch distance: the order is random
  int64_t reached = first, mark = whole;
  for (int64_t place = 0; place < n; ++place) {
    if (place + kAhead < n) __builtin_prefetch(units + order[place + kAhead]);
    const int64_t item = order[place];
    reached += units[item] * left;
    if (reached < mark) continue;
    drawn[item] = true;
    mark += whole;
  }
}

}  // namespace emp
