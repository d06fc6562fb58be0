// 2x2 max-pool with positions: the scalar rules, once for CPU and CUDA.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace asegnet::max_pool2x2 {

// torch's rule: a later element wins when it is greater, or when it is NaN. So the first of equal elements
// and the last NaN win, and a window of -inf alone has position 0.
//
// How stored values are compared: floats as themselves, halves as sortable 16-bit integers. Halves then need no
// conversion and fill twice the lanes; both zeros map to 0 and every NaN to the largest key.
template <class T>
struct ByValue {
  using Stored = T;
  using Position = uint8_t;
  static ASEGNET_HOST_DEVICE T key(T v) { return v; }
  static ASEGNET_HOST_DEVICE bool wins(T candidate, T best) { return (candidate > best) | (candidate != candidate); }
  template <class V>
  static ASEGNET_HOST_DEVICE V select(bool mask, V yes, V no) { return mask ? yes : no; }
};
// Masks are all-ones words and selection is arithmetic: g++ 12 vectorises no 16-bit selection by bool.
template <int kInfinity>  // the bits of +infinity
struct ByBits {
  using Stored = uint16_t;
  using Position = uint16_t;
  static ASEGNET_HOST_DEVICE int16_t mask(bool b) { return static_cast<int16_t>(-static_cast<int16_t>(b)); }
  static ASEGNET_HOST_DEVICE int16_t key(uint16_t bits) {
    const int16_t magnitude = static_cast<int16_t>(bits & 0x7fff);
    const int16_t sign = static_cast<int16_t>(static_cast<int16_t>(bits) >> 15);
    const int16_t ordered = static_cast<int16_t>((magnitude ^ sign) - sign);
    return select(mask(magnitude > kInfinity), int16_t{0x7fff}, ordered);
  }
  static ASEGNET_HOST_DEVICE int16_t wins(int16_t candidate, int16_t best) {
    return static_cast<int16_t>(mask(candidate > best) | mask(candidate == 0x7fff));
  }
  template <class V>
  static ASEGNET_HOST_DEVICE V select(int16_t mask, V yes, V no) {
    return static_cast<V>((yes & mask) | (no & ~mask));
  }
};
using OrderBFloat16 = ByBits<0x7f80>;
using OrderFloat16 = ByBits<0x7c00>;

// Position inside a window, 2*dy + dx.
ASEGNET_HOST_DEVICE bool is_code(uint8_t code) { return code < 4; }
ASEGNET_HOST_DEVICE uint8_t code_of(int dy, int dx) { return static_cast<uint8_t>(2 * dy + dx); }

// Size of the pooled side: ceil_mode keeps the last, half-filled window of an odd side.
ASEGNET_HOST_DEVICE int64_t pooled_size(int64_t size, bool ceil_mode) { return (size + (ceil_mode ? 1 : 0)) / 2; }
// Sides an unpooled map may have: 2h - 1 (pooled with ceil_mode), 2h, 2h + 1.
ASEGNET_HOST_DEVICE bool is_unpooled_size(int64_t size, int64_t pooled) {
  return size >= 0 && (pooled == size / 2 || pooled == size / 2 + size % 2);
}

}  // namespace asegnet::max_pool2x2
