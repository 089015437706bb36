// Sums over the rows and columns of a similarity matrix that is computed one tile at a time.
#pragma once

#include <cstdint>

namespace emp {

// A tile of the matrix: `rows` rows of `columns` floats, `stride` floats apart. Elements at -inf
// count as absent.
struct Tile {
  const float* data;
  int64_t rows, columns, stride;
};

// Running sums, one entry per row: m = max z and, over all elements but one maximal one, u = sum
// exp(z - m) and t = sum exp(z - m) (z - m). Initially (-inf, 0, 0). A NaN among a row's elements
// makes u NaN permanently.
struct SimilaritySums {
  double *m, *u, *t;
};

// Adds each row of the tile to the row's sums. The result does not depend on `threads`.
void add_tile_rows(const Tile& tile, const SimilaritySums& sums, int threads);

// The same for each column of the tile, treated as a row of the transposed matrix.
void add_tile_columns(const Tile& tile, const SimilaritySums& sums, int threads);

}  // namespace emp
