// Max-pooling with windows of side 2: which element of a window its maximum is, once for CPU and CUDA, and on the CPU
// for one value or a vector of them; and the sides of what comes of it.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace asegnet {

// torch's rule: a later element wins when it is greater, or when it is NaN. So the first of equal elements
// and the last NaN win, and a window of -inf alone has position 0. V is a float type or a vector of one.
template <class V>
ASEGNET_HOST_DEVICE auto wins(V candidate, V best) { return (candidate > best) | (candidate != candidate); }

// How stored values are compared: floats as themselves, halves as sortable 16-bit integers. Halves then need no
// conversion and fill twice the lanes; both zeros map to 0 and every NaN to the largest key. V is the stored type or
// a vector of it; `wins` is a bool of the one or a mask of the other. `kLowest` never wins: it stands for an element
// outside the map.
template <class T>
struct ByValue {
  using Stored = T;
  static constexpr T kLowest = -static_cast<T>(__builtin_inf());
  template <class V>
  static ASEGNET_HOST_DEVICE V key(V v) { return v; }
  template <class V>
  static ASEGNET_HOST_DEVICE auto wins(V candidate, V best) { return asegnet::wins(candidate, best); }
};
template <int kInfinity>  // the bits of +infinity
struct ByBits {
  using Stored = int16_t;
  static constexpr int16_t kLowest = static_cast<int16_t>(0x8000 | kInfinity);
  static constexpr int16_t kNaN = 0x7fff;
  template <class V>
  static ASEGNET_HOST_DEVICE V key(V bits) {
    const V magnitude = bits & kNaN, sign = bits >> 15;
    const V ordered = (magnitude ^ sign) - sign, nan = V{} + kNaN;
    return magnitude > int16_t{kInfinity} ? nan : ordered;
  }
  template <class V>
  static ASEGNET_HOST_DEVICE auto wins(V candidate, V best) {
    const V below_nan = V{} + static_cast<int16_t>(kNaN - 1);
    return candidate > (best < below_nan ? best : below_nan);
  }
};
using OrderBFloat16 = ByBits<0x7f80>;
using OrderFloat16 = ByBits<0x7c00>;

// Size of the pooled side: ceil_mode keeps the last, half-filled window of an odd side.
ASEGNET_HOST_DEVICE int64_t pooled_size(int64_t size, bool ceil_mode) { return (size + (ceil_mode ? 1 : 0)) / 2; }
// Sides an unpooled map may have: 2h - 1 (pooled with ceil_mode), 2h, 2h + 1.
ASEGNET_HOST_DEVICE bool is_unpooled_size(int64_t size, int64_t pooled) {
  return size >= 0 && (pooled == size / 2 || pooled == size / 2 + size % 2);
}

}  // namespace asegnet
