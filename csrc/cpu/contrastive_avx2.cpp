#include "contrastive_rows.h"
#include "simd_avx2.h"

emp::SimilarityAdders emp::similarity_adders_avx2() { return similarity_adders<avx2::Simd>(); }
