// 2x2x2 max-pool with positions; the rules it shares with 2x2 stand in common/window.h.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/window.h"

namespace asegnet::max_pool2x2x2 {

constexpr int kElements = 8;  // of a window

// Position inside a window, 4*dz + 2*dy + dx.
ASEGNET_HOST_DEVICE bool is_code(uint8_t code) { return code < kElements; }

}  // namespace asegnet::max_pool2x2x2
