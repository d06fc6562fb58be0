// bfloat16 and float16 as 16 stored bits, with conversions that need no library.
// Include only from simd.cpp (and nvcc): everything is force-inlined, so no instruction set leaks into another.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace asegnet {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
struct Acc {  // the type sums are kept in
  using type = float;
};
template <>
struct Acc<double> {
  using type = double;
};
template <class T>
using acc_t = typename Acc<T>::type;

// std::is_same without the standard library, which code of one instruction set must not instantiate.
template <class A, class B>
constexpr bool kIsSame = false;
template <class A>
constexpr bool kIsSame<A, A> = true;

ASEGNET_HOST_DEVICE float to_acc(float v) { return v; }
ASEGNET_HOST_DEVICE double to_acc(double v) { return v; }
ASEGNET_HOST_DEVICE float to_acc(BFloat16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}

template <class T>
ASEGNET_HOST_DEVICE T from_acc(acc_t<T> v);
template <>
ASEGNET_HOST_DEVICE float from_acc<float>(float v) { return v; }
template <>
ASEGNET_HOST_DEVICE double from_acc<double>(double v) { return v; }
template <>
ASEGNET_HOST_DEVICE BFloat16 from_acc<BFloat16>(float v) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  __builtin_memcpy(&bits, &v, 4);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(v != v ? 0x7fc0u : rounded)};
}

// float16 by integer arithmetic and selections alone: loops over it vectorise for every instruction set.
ASEGNET_HOST_DEVICE float to_acc(Float16 v) {
  const uint32_t sign = (v.bits & 0x8000u) << 16, magnitude = (v.bits & 0x7fffu) << 13;
  float f;
  __builtin_memcpy(&f, &magnitude, 4);
  f *= 0x1p112f;  // moves the exponent, and makes a subnormal normal
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  bits = sign | (magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : bits);  // infinity and NaN
  __builtin_memcpy(&f, &bits, 4);
  return f;
}
template <>
ASEGNET_HOST_DEVICE Float16 from_acc<Float16>(float v) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  __builtin_memcpy(&bits, &v, 4);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  float small;  // below 2^-14: adding 1/2 leaves the subnormal, rounded, in the low bits
  __builtin_memcpy(&small, &magnitude, 4);
  small += 0.5f;
  uint32_t subnormal;
  __builtin_memcpy(&subnormal, &small, 4);
  subnormal -= 0x3f000000u;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  return {static_cast<uint16_t>(sign | (magnitude >= 0x47800000u ? special : finite))};
}

}  // namespace asegnet
