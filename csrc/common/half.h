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

#ifndef __CUDACC__
ASEGNET_HOST_DEVICE float to_acc(Float16 v) {
  _Float16 h;
  __builtin_memcpy(&h, &v.bits, 2);
  return static_cast<float>(h);
}
template <>
ASEGNET_HOST_DEVICE Float16 from_acc<Float16>(float v) {
  const _Float16 h = static_cast<_Float16>(v);
  Float16 r;
  __builtin_memcpy(&r.bits, &h, 2);
  return r;
}
#endif

}  // namespace asegnet
