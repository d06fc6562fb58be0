// 2x2 max-pool with positions: the scalar rules, once for CPU and CUDA.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/host_device.h"

namespace asegnet::max_pool2x2 {

// How values are compared: floats as themselves, halves as sortable 16-bit integers. Halves then need no
// conversion and fill twice the lanes; both zeros map to 0 and every NaN to the largest key.
ASEGNET_HOST_DEVICE float order(float v) { return v; }
ASEGNET_HOST_DEVICE double order(double v) { return v; }
template <int kInfinity>
ASEGNET_HOST_DEVICE int16_t order_bits(uint16_t bits) {
  const int16_t magnitude = static_cast<int16_t>(bits & 0x7fff);
  const int16_t key = static_cast<int16_t>(bits >> 15 ? -magnitude : magnitude);
  return magnitude > kInfinity ? int16_t{0x7fff} : key;
}
ASEGNET_HOST_DEVICE int16_t order(BFloat16 v) { return order_bits<0x7f80>(v.bits); }
ASEGNET_HOST_DEVICE int16_t order(Float16 v) { return order_bits<0x7c00>(v.bits); }

ASEGNET_HOST_DEVICE bool is_nan(float v) { return v != v; }
ASEGNET_HOST_DEVICE bool is_nan(double v) { return v != v; }
ASEGNET_HOST_DEVICE bool is_nan(int16_t key) { return key == 0x7fff; }

// torch's rule: a later element wins when it is greater, or when it is NaN. So the first of equal elements
// and the last NaN win, and a window of -inf alone has position 0.
template <class Key>
ASEGNET_HOST_DEVICE bool wins(Key candidate, Key best) {
  return (candidate > best) | is_nan(candidate);
}

// Position inside a window, 2*dy + dx.
ASEGNET_HOST_DEVICE bool is_code(uint8_t code) { return code < 4; }
ASEGNET_HOST_DEVICE uint8_t code_of(int dy, int dx) { return static_cast<uint8_t>(2 * dy + dx); }

// Size of the pooled side: ceil_mode keeps the last, half-filled window of an odd side.
ASEGNET_HOST_DEVICE int64_t pooled_size(int64_t size, bool ceil_mode) { return (size + (ceil_mode ? 1 : 0)) / 2; }
// Sides an unpooled map may have: 2h - 1 (pooled with ceil_mode), 2h, 2h + 1.
ASEGNET_HOST_DEVICE bool is_unpooled_size(int64_t size, int64_t pooled) {
  return size >= 2 * pooled - 1 && size <= 2 * pooled + 1 && size >= 0;
}

}  // namespace asegnet::max_pool2x2
