#include "permuted_places.h"

emp::PermutedPlaces emp::permuted_places_avx2() { return Places<2>::write; }
