// Element types that the kernels read, and their codes in Python.
#pragma once

#include <cstdint>
#include <cstring>

namespace emp {

// Inline functions shared by target-specific files are always inlined: otherwise the linker might
// keep the copy compiled for AVX-512 for all targets.

// Storage types without arithmetic: each SIMD target converts them to float when it loads them.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

[[gnu::always_inline]] inline float to_float(float x) { return x; }
[[gnu::always_inline]] inline float to_float(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
[[gnu::always_inline]] inline float to_float(Float16 x) {
  // The shifted magnitude read as a float is too small by 2^112, subnormals included.
  const uint32_t magnitude = x.bits & 0x7fffu;
  uint32_t bits = magnitude << 13;
  float f;
  std::memcpy(&f, &bits, 4);
  f *= 0x1p112f;
  std::memcpy(&bits, &f, 4);
  if (magnitude >= 0x7c00u) bits = 0x7f800000u | (magnitude << 13);
  bits |= uint32_t(x.bits & 0x8000u) << 16;
  std::memcpy(&f, &bits, 4);
  return f;
}

// Round to nearest even; a NaN stays one.
[[gnu::always_inline]] inline void from_float(float x, float& to) { to = x; }
[[gnu::always_inline]] inline void from_float(float x, BFloat16& to) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits = x == x ? bits + 0x7fffu + ((bits >> 16) & 1u) : bits | 0x00400000u;
  to.bits = uint16_t(bits >> 16);
}
[[gnu::always_inline]] inline void from_float(float x, Float16& to) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude >= 0x7f800001u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or more
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // a subnormal half: adding 0.5 rounds its bits
    float shifted;
    std::memcpy(&shifted, &magnitude, 4);
    shifted += 0.5f;
    std::memcpy(&half, &shifted, 4);
    half -= 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  to.bits = uint16_t(sign | half);
}

enum class LogitDtype : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

enum class IntDtype : int {
  kInt64 = 0,
  kInt32 = 1,
  kInt16 = 2,
  kInt8 = 3,
  kUInt8 = 4,
  kUInt16 = 5,
  kUInt32 = 6,
  kUInt64 = 7,
};

}  // namespace emp
