#include "permuted_places.h"

emp::PermutedPlaces emp::permuted_places_avx512() { return Places<3>::write; }
