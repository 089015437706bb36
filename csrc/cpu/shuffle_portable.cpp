#include "permuted_places.h"

emp::PermutedPlaces emp::permuted_places_portable() { return Places<0>::write; }
