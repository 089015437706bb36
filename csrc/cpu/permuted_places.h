// A keyed pseudo-random permutation of [0, n): the body of shuffle_<target>.cpp.
//
// A Feistel network (Luby and Rackoff; in mixed radix, Black and Rogaway). Place p is the pair
// (p / columns, p % columns) of a table of rows x columns that is hardly larger than n. Six rounds
// alternately add a hash of the column to the row, modulo rows, and a hash of the row to the
// column. Each round is invertible, so the table is permuted; an image of n or more is mapped again
// until it is below n (cycle walking). Five rounds are the fewest that statistical tests could not
// distinguish from random orders (tests/test_sampler.py).
#pragma once

#include <cstdint>

namespace emp {

constexpr int kRounds = 6;
constexpr uint32_t kPlacesBlock = 256;  // a block of places spans at most two rows

struct Permutation {
  uint32_t n;
  uint16_t rows, columns;  // kPlacesBlock <= columns <= rows
  struct Key {
    uint16_t factor, term, factor2;
  } keys[kRounds];
};

// Writes the images of places [first, first + count), which are below n, to out (count,).
using PermutedPlaces = void (*)(const Permutation& permutation, uint32_t first, uint32_t count,
                                uint32_t* out);
PermutedPlaces permuted_places_avx512();
PermutedPlaces permuted_places_avx2();
PermutedPlaces permuted_places_portable();

// Plain loops over 16-bit lanes, compiled once per target; `kTarget` makes the copies distinct.
template <int kTarget>
struct Places {
  // (x + hash of y) mod size, for x < size.
  [[gnu::always_inline]] static uint16_t moved(uint16_t x, uint16_t y, uint16_t size,
                                               Permutation::Key key) {
    uint16_t hash = uint16_t(y * key.factor + key.term);
    hash = uint16_t(hash ^ (hash >> 8));
    hash = uint16_t(hash * key.factor2);
    const uint16_t step = uint16_t(uint32_t(hash) * size >> 16);
    const uint16_t below_zero = uint16_t(x + step - size);
    return x < uint16_t(size - step) ? uint16_t(x + step) : below_zero;
  }

  [[gnu::always_inline]] static uint32_t feistel_step(const Permutation& p, uint16_t row,
                                                      uint16_t column) {
#pragma GCC unroll 3
    for (int i = 0; i < kRounds; i += 2) {
      row = moved(row, column, p.rows, p.keys[i]);
      column = moved(column, row, p.columns, p.keys[i + 1]);
    }
    return uint32_t(row) * p.columns + column;
  }

  // The image of one place, which is below n.
  static uint32_t at(const Permutation& p, uint32_t place) {
    do {
      place = feistel_step(p, uint16_t(place / p.columns), uint16_t(place % p.columns));
    } while (place >= p.n);
    return place;
  }

  static void write(const Permutation& permutation, uint32_t first, uint32_t count, uint32_t* out) {
    const Permutation p = permutation;  // a copy that `out` cannot alias
    const uint32_t first_row = first / p.columns, first_column = first % p.columns;
    uint32_t outside = 0;
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t column = first_column + i;
      const uint32_t over = column >= p.columns ? 1 : 0;
      out[i] =
          feistel_step(p, uint16_t(first_row + over), uint16_t(over ? column - p.columns : column));
      outside |= out[i] >= p.n ? 1 : 0;
    }
    if (!outside) return;
    for (uint32_t i = 0; i < count; ++i)
      while (out[i] >= p.n)
        out[i] = feistel_step(p, uint16_t(out[i] / p.columns), uint16_t(out[i] % p.columns));
  }
};

}  // namespace emp
