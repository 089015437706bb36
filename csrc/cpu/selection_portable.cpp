#include "select_kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include <array>

namespace emp {
namespace {

constexpr int kWidth = 4;

// For each set of lanes, the byte indices of its members and their number.
struct alignas(32) Packed {
  uint8_t bytes[16], count;
};
constexpr std::array<Packed, 16> packed_lanes() {
  std::array<Packed, 16> all{};
  for (unsigned set = 0; set < 16; ++set) {
    Packed& packed = all[set];
    for (unsigned lane = 0; lane < kWidth; ++lane)
      if (set & 1u << lane) {
        for (unsigned byte = 0; byte < 4; ++byte)
          packed.bytes[4 * packed.count + byte] = uint8_t(4 * lane + byte);
        ++packed.count;
      }
  }
  return all;
}
constexpr std::array<Packed, 16> kPacked = packed_lanes();

// Sets of lanes as one bit per lane.
const Packed& packed(uint32x4_t lanes) {
  constexpr uint32_t kBits[] = {1, 2, 4, 8};
  return kPacked[vaddvq_u32(vandq_u32(lanes, vld1q_u32(kBits)))];
}
uint8x16_t members(const Packed& packed, uint8x16_t lanes) {
  return vqtbl1q_u8(lanes, vld1q_u8(packed.bytes));
}

EMP_MAY_RACE SelectKernels::Collected collect(const float* scores, int64_t n, float low, float high,
                                              float* candidates) {
  const float32x4_t lowest = vdupq_n_f32(low), highest = vdupq_n_f32(high);
  uint64x2_t above = vdupq_n_u64(0);
  int64_t written = 0, i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const float32x4_t s = vld1q_f32(scores + i);
    above = vpadalq_u32(above, vshrq_n_u32(vcgtq_f32(s, highest), 31));
    const Packed& taken = packed(vandq_u32(vcgeq_f32(s, lowest), vcleq_f32(s, highest)));
    vst1q_f32(candidates + written, vreinterpretq_f32_u8(members(taken, vreinterpretq_u8_f32(s))));
    written += taken.count;
  }
  const auto rest = plain::Kernels<0>::collect(scores + i, n - i, low, high, candidates + written);
  return {int64_t(vaddvq_u64(above)) + rest.above, written + rest.written};
}

EMP_MAY_RACE int64_t compact(const float* scores, int64_t n, float threshold, Ties ties,
                             int64_t first, int64_t* out, int64_t room) {
  constexpr uint32_t kLanes[] = {0, 1, 2, 3};
  const float32x4_t t = vdupq_n_f32(threshold);
  const uint32x4_t equal = vdupq_n_u32(ties == Ties::kAll ? ~0u : 0u), lane = vld1q_u32(kLanes);
  const int64x2_t base = vdupq_n_s64(first);
  int64_t written = 0, i = 0;
  // Surplus elements are overwritten by later ones, except at the end of this run's output, after
  // which another thread may have written.
  for (; i + kWidth <= n && written + kWidth <= room; i += kWidth) {
    const float32x4_t s = vld1q_f32(scores + i);
    const Packed& taken = packed(vorrq_u32(vcgtq_f32(s, t), vandq_u32(vceqq_f32(s, t), equal)));
    const uint32x4_t position = vaddq_u32(lane, vdupq_n_u32(uint32_t(i)));
    const int32x4_t chosen = vreinterpretq_s32_u8(members(taken, vreinterpretq_u8_u32(position)));
    vst1q_s64(out + written, vaddw_s32(base, vget_low_s32(chosen)));
    vst1q_s64(out + written + 2, vaddw_high_s32(base, chosen));
    written += taken.count;
  }
  return written + plain::Kernels<0>::compact(scores + i, n - i, threshold, ties, first + i,
                                              out + written, room - written);
}

}  // namespace

SelectKernels select_kernels_portable() {
  using Plain = plain::Kernels<0>;
  return {collect, Plain::count_at_least, Plain::lowest_at_least, compact};
}

}  // namespace emp

#else

emp::SelectKernels emp::select_kernels_portable() { return plain::Kernels<0>::all(); }

#endif
