// 2x2 max-pool with positions; the rules it shares with 2x2x2 stand in common/window.h.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/window.h"

namespace asegnet::max_pool2x2 {

// Position inside a window, 2*dy + dx.
ASEGNET_HOST_DEVICE bool is_code(uint8_t code) { return code < 4; }

}  // namespace asegnet::max_pool2x2
