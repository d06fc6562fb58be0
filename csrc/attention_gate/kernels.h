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

// Pixels are worked on in tiles of this many.
constexpr int64_t kTilePixels = 64;

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

// Pixels are numbered (n * H + y) * W + x over all images, of the fine or of the coarse grid. P(c) = padded<A>(c).
template <typename A>
struct Problem {
  int64_t channels = 0;          // Cx
  int64_t gating_channels = 0;   // Cg
  int64_t inter_channels = 0;    // F
  bool multiplicative = false;
  bool stream = false;           // whether out, dx and dg are written past the cache
  Axis<A> rows, columns;

  Image x, g;                    // [N, Cx, H, W], [N, Cg, Hg, Wg]
  Image out, alpha;              // written by forward
  A* gate = nullptr;             // [N, H, W] alpha unrounded: written by forward where not null, read by backward
  uint8_t* mask = nullptr;       // [N, H, W, ceil(F / 8)] bit f: s_f > 0 (or NaN); null in multiplicative mode
  Image dout, dalpha, dx, dg;
  A* dlogit = nullptr;           // [N, H, W] backward_fine writes it, gather reads it
  A* u = nullptr;                // [N, Hg, Wg, P(F)] Wg g + b_g, which gating writes and forward reads
  A* du = nullptr;               // [N, Hg, Wg, P(F)] its gradient, from gather to backward_coarse; additive: over w_psi

  // Packed by cpu.cpp. "Panels of n" is [P(n) / panel][k][panel], the order in which a product reads it.
  const A* w_x = nullptr;        // [Cx, F] in panels of F
  const A* w_g = nullptr;        // [Cg, F] in panels of F
  const A* b_g = nullptr;        // [P(F)]
  const A* w_psi = nullptr;      // [P(F)]
  A b_psi = 0;
  const A* w_x_back = nullptr;   // w_psi * w_x (multiplicative: w_x) as pack_back has it
  const A* w_g_back = nullptr;   // the same of w_g
};

// Whether tiles of such a tensor have the channels as rows: then a row of pixels stays a vector and nothing is
// transposed. Weights for the gradient of a pixel-major tile are [F, C] in panels of C, else [C, F].
inline bool channel_major(const Image& image) { return image.c != 1; }

// Partial sums of one chunk of pixels, zero on entry.
// Additive: with m = [s > 0] and d = dL/d(logit), x_sum = sum d x m^T, g_sum = sum g up^T(d m)^T and
// b_sum = sum up^T(d m); the weights' gradients follow from these three, see cpu.cpp.
// Multiplicative: x_sum, g_sum and b_sum are dw_x and dw_g transposed, and db_g.
template <typename A>
struct FinePartial {
  A* x_sum;        // [Cx, P(F)]
  A* dw_psi;       // [P(F)] multiplicative only
  A* db_psi;       // [1]
};

template <typename A>
struct CoarsePartial {
  A* g_sum;        // [Cg, P(F)]
  A* b_sum;        // [P(F)]
};

// What one instruction set offers for one element type: each works on a range of pixels, `gather` on one of rows.
template <typename A>
struct RowKernels {
  void (*gating)(const Problem<A>&, int64_t begin, int64_t end);
  void (*forward)(const Problem<A>&, int64_t begin, int64_t end);
  void (*backward_fine)(const Problem<A>&, int64_t begin, int64_t end, const FinePartial<A>&);
  void (*gather)(const Problem<A>&, int64_t begin, int64_t end);
  void (*backward_coarse)(const Problem<A>&, int64_t begin, int64_t end, const CoarsePartial<A>&);
};

struct Kernels {
  RowKernels<float> float32, bfloat16, float16;
  RowKernels<double> float64;
};

ASEGNET_DECLARE_KERNELS(Kernels)

}  // namespace asegnet::attention_gate
