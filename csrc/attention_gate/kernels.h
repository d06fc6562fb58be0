// Raw-pointer interface between cpu.cpp (tensors, threads, sums of partial results) and simd.cpp (one copy per
// instruction set). A is the type everything is summed in: double for double tensors, float for all others.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace asegnet::attention_gate {

// Channel counts are padded with zeros to whole panels of this many bytes in every packed buffer.
constexpr int64_t kPanelBytes = 64;

template <typename A>
static constexpr int64_t padded(int64_t channels) {
  constexpr int64_t panel = kPanelBytes / static_cast<int64_t>(sizeof(A));
  return (channels + panel - 1) / panel * panel;
}

// A [N, C, H, W] tensor of the problem's element type, strides in elements.
struct Image {
  void* data = nullptr;
  int64_t n = 0, c = 0, h = 0, w = 0;
};

// One axis of the upsampling, as tables.
template <typename A>
struct Axis {
  int64_t fine = 0;
  int64_t coarse = 0;
  bool blend = false;                 // false: upper_weight is 0 everywhere and `upper` is not read
  const int64_t* lower = nullptr;     // [fine] coarse positions, never decreasing
  const int64_t* upper = nullptr;     // [fine]
  const A* upper_weight = nullptr;    // [fine]
  const int64_t* begin = nullptr;     // [coarse] the fine positions that read a coarse one are [begin, end)
  const int64_t* end = nullptr;       // [coarse]
};

template <typename A>
struct Problem {
  int64_t channels = 0;          // Cx
  int64_t gating_channels = 0;   // Cg
  int64_t inter_channels = 0;    // F
  bool multiplicative = false;
  Axis<A> rows, columns;

  Image x, g;                    // [N, Cx, H, W], [N, Cg, Hg, Wg]
  Image out, alpha;              // written by forward
  A* gate = nullptr;             // [N, H, W] alpha unrounded: written by forward where not null, read by backward
  uint8_t* mask = nullptr;       // [N, H, W, ceil(F / 8)] bit f: s_f > 0 (or NaN); null in multiplicative mode
  Image dout, dalpha, dx, dg;
  A* dlogit = nullptr;           // [N, H, W] backward_fine writes it, backward_coarse reads it

  // Packed by cpu.cpp; P(c) = padded<A>(c).
  const A* w_x = nullptr;        // [Cx, P(F)]
  const A* w_g = nullptr;        // [Cg, P(F)]
  const A* b_g = nullptr;        // [P(F)]
  const A* w_psi = nullptr;      // [P(F)]
  A b_psi = 0;
  const A* w_x_back = nullptr;   // [F, P(Cx)] w_psi * w_x; multiplicative: w_x
  const A* w_g_back = nullptr;   // [F, P(Cg)] w_psi * w_g; multiplicative: w_g
};

// Partial sums of one chunk of rows, zero on entry.
// Additive: with m = [s > 0] and d = dL/d(logit), x_sum = sum d m x^T, g_sum = sum up^T(d m) g^T and
// b_sum = sum up^T(d m); the weights' gradients follow from these three, see cpu.cpp.
// Multiplicative: x_sum, g_sum and b_sum are dw_x, dw_g and db_g themselves.
template <typename A>
struct FinePartial {
  A* x_sum;        // [F, P(Cx)]
  A* dw_psi;       // [P(F)] multiplicative only
  A* db_psi;       // [1]
};

template <typename A>
struct CoarsePartial {
  A* g_sum;        // [F, P(Cg)]
  A* b_sum;        // [P(F)]
};

// What one instruction set offers for one element type. Row ranges count n * H + y over all images.
template <typename A>
struct RowKernels {
  void (*forward)(const Problem<A>&, int64_t begin, int64_t end);
  void (*backward_fine)(const Problem<A>&, int64_t begin, int64_t end, const FinePartial<A>&);
  void (*backward_coarse)(const Problem<A>&, int64_t begin, int64_t end, const CoarsePartial<A>&);
};

struct Kernels {
  RowKernels<float> float32, bfloat16, float16;
  RowKernels<double> float64;
};

ASEGNET_DECLARE_KERNELS(Kernels)

}  // namespace asegnet::attention_gate
