// Raw-pointer kernels of max_pool2x2: one call works on one row of windows (fixed image, fixed window row).
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace asegnet::max_pool2x2 {

// A row of windows lies over two input rows of `inner` elements per column: inner = C for channels_last,
// 1 for NCHW (there a "row" belongs to one channel). `pooled` windows in the row; `width` columns in the full
// map (2*pooled - 1, 2*pooled or 2*pooled + 1). Row 1 is null where the last window is half-filled.
// unpool_backward alone reads maps whose columns lie further apart than `inner`: `pitch`.
struct Row {
  int64_t pooled, width, inner, pitch;
};

struct Kernels {
  // x rows -> y, code. Indexed by Float (common/tensor.h).
  void (*pool[4])(const void* row0, const void* row1, void* y, uint8_t* code, Row r);
  // y, code -> output rows, each element written once. Indexed by log2 of the element size.
  // Returns false where a code is above 3 or points outside the map; such an element is written nowhere.
  bool (*unpool[4])(const void* y, const uint8_t* code, void* row0, void* row1, Row r);
  // gradient rows, code -> gradient of y. Same index, same answer; an invalid code reads nothing.
  bool (*unpool_backward[4])(const void* row0, const void* row1, const uint8_t* code, void* grad_y, Row r);
};

ASEGNET_DECLARE_KERNELS(Kernels)

}  // namespace asegnet::max_pool2x2
