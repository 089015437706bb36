#include "contrastive_rows.h"
#include "simd_avx512.h"

emp::SimilarityAdders emp::similarity_adders_avx512() { return similarity_adders<avx512::Simd>(); }
