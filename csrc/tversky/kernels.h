// What simd.cpp offers to cpu.cpp: the pixels [begin, end) of one image, raw pointers and strides.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/isa.h"

namespace asegnet::tversky {

enum Label { kUInt8, kInt8, kInt16, kInt32, kInt64 };

// Strides count elements. The spatial axes are numbered in target's order and merged where every tensor allows,
// so that the usual layouts, NCHW and channels_last, have one axis.
struct Pixels {
  int64_t axes;
  const int64_t* sizes;
};

struct Logits {
  void* data;  // written only where it is the gradient
  int64_t image_stride, channel_stride;
  const int64_t* strides;
};

struct Target {
  const void* data;
  Label type;
  int64_t image_stride;
  const int64_t* strides;
  bool has_ignore;
  int64_t ignore;
};

// The rows of sums that a loss needs; for a gradient, those whose coefficients are not all zero.
enum Rows {
  kTverskyRows,       // TP, FP, FN; also the literal Dice
  kGeneralizedRows,   // TP, COUNT, SUM_P2
  kCrossEntropyRows,  // COUNT, CE
  kAllRows
};

struct Problem {
  int64_t channels;  // C; one channel z stands for the two classes of softmax over (0, z)
  Pixels pixels;
  Logits logits;
  Target target;
  Rows rows;  // the others stay zero

  int64_t classes() const { return channels == 1 ? 2 : channels; }
};

// Bytes of 64-byte aligned scratch that one call of either kernel needs.
inline int64_t scratch_bytes(int64_t classes);

// Pixels handled at a time; lane sums in float32 go into double after each block.
constexpr int64_t kBlock = 512;
inline int64_t block_pixels(int64_t classes) { return classes <= 16 ? kBlock : kBlock / 8; }
inline int64_t scratch_bytes(int64_t classes) {
  const int64_t per_class = 2 * block_pixels(classes) * 8 /* planes */ + 8 * 64 /* lanes */ + 6 * 128 /* totals */;
  return kBlock * 4 /* labels */ + classes * per_class;
}

struct Kernels {
  // Adds to sums[6 * classes] (rows as math.h). False where a label was undefined; such pixels are left out.
  using Sums = bool (*)(const Problem&, int64_t image, int64_t begin, int64_t end, double* sums, void* scratch);
  // Writes d logits, from coefficients[6 * classes] of the image.
  using Gradient = bool (*)(const Problem&, const Logits& grad, int64_t image, int64_t begin, int64_t end,
                            const double* coefficients, void* scratch);
  Sums sums[4];          // float32, float64, bfloat16, float16
  Gradient gradient[4];
};

ASEGNET_DECLARE_KERNELS(Kernels)

}  // namespace asegnet::tversky
