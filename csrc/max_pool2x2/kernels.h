// Raw-pointer kernels of max_pool2x2: one call works on a range of rows of windows.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace asegnet::max_pool2x2 {

// The large map is planes of height x width; a row of windows lies over two of its rows. The small map and
// the codes are dense: row r of all rows of windows starts at r * pooled_width * inner. channels_last: a plane is an
// image, with `inner` = C elements per column. NCHW: a plane is one channel, `inner` = 1.
struct Geometry {
  int64_t pooled_height, pooled_width, height, width, inner;
  int64_t channels;                      // planes per image
  int64_t image, channel, row, column;   // the large map's strides, in elements
};

// Rows of windows [begin, end). `stream`: outputs are to bypass the cache where their alignment allows it.
struct Kernels {
  // x -> y, code. Indexed by Float (common/tensor.h).
  void (*pool[4])(const void* x, void* y, uint8_t* code, const Geometry& g, int64_t begin, int64_t end, bool stream);
  // y, code -> the large map, each element written once. Indexed by the size of an element: 2, 4 or 8 bytes.
  // Returns false where a code is above 3 or points outside the map; such an element is written nowhere.
  bool (*unpool[3])(const void* y, const uint8_t* code, void* out, const Geometry& g, int64_t begin, int64_t end,
                    bool stream);
  // gradient of the large map, code -> gradient of y. Same index, same answer; nothing outside the map is read.
  bool (*unpool_backward[3])(const void* grad, const uint8_t* code, void* grad_y, const Geometry& g, int64_t begin,
                             int64_t end, bool stream);
};

ASEGNET_DECLARE_KERNELS(Kernels)

}  // namespace asegnet::max_pool2x2
