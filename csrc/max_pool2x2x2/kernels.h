// Raw-pointer kernels of max_pool2x2x2: one call works on a range of rows of windows.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace asegnet::max_pool2x2x2 {

// A row of windows lies over two rows of two slices of the large map. The small map and the codes are dense: row r
// starts at r * pooled[2] * inner. channels_last: rows run over N, d, h, with `inner` = C elements a column; NCDHW:
// over N, C, d, h, with `inner` = 1.
struct Geometry {
  int64_t pooled[3], full[3];         // depth, height, width
  int64_t inner, channels;            // channels: planes per image that rows run over, 1 for channels_last
  int64_t image, channel, stride[3];  // the large map's strides, in elements
};

// Rows of windows [begin, end).
struct Kernels {
  // x -> y, code. Indexed by Float (common/tensor.h).
  void (*pool[4])(const void* x, void* y, uint8_t* code, const Geometry& g, int64_t begin, int64_t end);
  // y, code -> the large map, each element written once. Indexed by log2 of the element size.
  // Returns false where a code is above 7 or points outside the map; such an element is written nowhere.
  bool (*unpool[4])(const void* y, const uint8_t* code, void* out, const Geometry& g, int64_t begin, int64_t end);
  // gradient of the large map, code -> gradient of y. Same index, same answer; nothing outside the map is read.
  bool (*unpool_backward[4])(const void* grad, const uint8_t* code, void* grad_y, const Geometry& g, int64_t begin,
                             int64_t end);
};

ASEGNET_DECLARE_KERNELS(Kernels)

}  // namespace asegnet::max_pool2x2x2
