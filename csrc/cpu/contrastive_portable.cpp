#include "contrastive_rows.h"
#include "simd_portable.h"

emp::SimilarityAdders emp::similarity_adders_portable() {
  return similarity_adders<portable::Simd>();
}
