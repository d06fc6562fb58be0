// The attention gate's CPU kernels, compiled once per instruction set: raw pointers, one anonymous namespace.
#include "attention_gate/kernels.h"
#include "attention_gate/math.h"
#include "attention_gate/tiles.h"

namespace asegnet::attention_gate {
namespace {

constexpr int64_t kStripColumns = 512;        // of the fine grid
constexpr int64_t kCoarseStripColumns = 256;

ASEGNET_HOST_DEVICE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
ASEGNET_HOST_DEVICE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// [s > 0] as torch's relu has it, which lets NaN through; lanes past F are off, so that 0 * infinity stays out.
template <typename A>
ASEGNET_HOST_DEVICE Mask<A> active_lanes(Vector<A> s, int64_t first, int64_t inter_channels) {
  const Mask<A> active = ~(s <= Vector<A>{});
  if (first + kLanes<A> <= inter_channels) return active;
  const typename Lane<A>::Integer left = static_cast<typename Lane<A>::Integer>(inter_channels - first);
  return active & (lane_numbers<A>() < left);
}

// The mask bits of one pixel: whole panels, of which the first ceil(F / 8) bytes are stored.
template <typename A>
constexpr int kPanelMaskBytes = kPanelBytes / static_cast<int>(sizeof(A)) / 8;

template <typename A>
ASEGNET_HOST_DEVICE void put_panel_bits(uint8_t* to, unsigned bits) {
  to[0] = static_cast<uint8_t>(bits);
  if constexpr (kPanelMaskBytes<A> == 2) to[1] = static_cast<uint8_t>(bits >> 8);
}

template <typename A>
ASEGNET_HOST_DEVICE unsigned panel_bits(const uint8_t* from, int64_t bytes) {
  if constexpr (kPanelMaskBytes<A> == 2) {
    if (bytes > 1) return from[0] | (static_cast<unsigned>(from[1]) << 8);
  }
  return from[0];
}

// alpha = sigmoid(w_psi . relu(s) + b_psi) for a tile of s, and the bits [s > 0]. In multiplicative mode s is the
// product of the two tiles and no bits are kept.
template <typename A, bool kMultiplicative>
inline void gate_tile(const Problem<A>& problem, int64_t pixels, const A* s_tile, const A* factor, A* alpha,
                      uint8_t* mask) {
  constexpr int L = kLanes<A>;
  constexpr int kPanelVectors = kPanelBytes / kVectorBytes;
  const int64_t stride = padded<A>(problem.inter_channels);
  const int64_t mask_bytes = (problem.inter_channels + 7) / 8;
  for (int64_t p = 0; p < pixels; ++p) {
    Vector<A> sum{};
    for (int64_t panel = 0; panel < stride; panel += L * kPanelVectors) {
      unsigned bits = 0;
      for (int v = 0; v < kPanelVectors; ++v) {
        const int64_t f = panel + v * L;
        Vector<A> s = load(s_tile + p * stride + f);
        if constexpr (kMultiplicative) s *= load(factor + p * stride + f);
        const Mask<A> active = active_lanes<A>(s, f, problem.inter_channels);
        sum += keep<A>(s, active) * load(problem.w_psi + f);
        if constexpr (!kMultiplicative) bits |= bits_of<A>(active) << (v * L);
      }
      if constexpr (!kMultiplicative) {
        const int64_t byte = panel / 8;
        if (byte + kPanelMaskBytes<A> <= mask_bytes) {
          put_panel_bits<A>(mask + p * mask_bytes + byte, bits);
        } else {
          mask[p * mask_bytes + byte] = static_cast<uint8_t>(bits);
        }
      }
    }
    alpha[p] = sum_of<A>(sum) + problem.b_psi;
  }
  for (int64_t p = 0; p < pixels; ++p) alpha[p] = sigmoid(alpha[p]);
}

// out = alpha x, from the tile where that is channels_last's order, else channel by channel along the row.
template <typename T, typename A>
inline void scale_tile(const Problem<A>& problem, int64_t pixels, const T* x, const Tile<A>& x_tile, const A* alpha,
                       T* out) {
  const Image &from = problem.x, &to = problem.out;
  if (to.c == 1) {
    for (int64_t p = 0; p < pixels; ++p) {
      const A* __restrict source = x_tile.data + p * x_tile.stride;
      T* __restrict target = out + p * to.w;
      for (int64_t c = 0; c < problem.channels; ++c) target[c] = from_acc<T>(alpha[p] * source[c]);
    }
    return;
  }
  for (int64_t c = 0; c < problem.channels; ++c) {
    const T* __restrict source = x + c * from.c;
    T* __restrict target = out + c * to.c;
    if (from.w == 1 && to.w == 1) {
      for (int64_t p = 0; p < pixels; ++p) target[p] = from_acc<T>(alpha[p] * to_acc(source[p]));
    } else {
      for (int64_t p = 0; p < pixels; ++p) target[p * to.w] = from_acc<T>(alpha[p] * to_acc(source[p * from.w]));
    }
  }
}

// Reads x once and g once (and one coarse row more per range), writes out, alpha and F bits per pixel.
template <typename T, typename A>
void forward(const Problem<A>& problem, int64_t begin, int64_t end) {
  const int64_t height = problem.rows.fine, width = problem.columns.fine;
  const int64_t inter = padded<A>(problem.inter_channels);
  const int64_t mask_bytes = (problem.inter_channels + 7) / 8;
  Upsampler<T, A> upsampler(problem, kStripColumns);
  Scratch<A> x_buffer(kTilePixels * padded<A>(problem.channels));
  Scratch<A> s_tile(kTilePixels * inter), up_tile(problem.multiplicative ? kTilePixels * inter : 0);
  A alpha[kTilePixels];

  for (int64_t strip = 0; strip < width; strip += kStripColumns) {
    const int64_t strip_end = least(width, strip + kStripColumns);
    upsampler.start_strip(strip, strip_end);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / height, y = row % height;
      upsampler.start_row(n, y);
      for (int64_t column = strip; column < strip_end; column += kTilePixels) {
        const int64_t pixels = least(kTilePixels, strip_end - column);
        const T* x = pixel<const T>(problem.x, n, y, column);
        const Tile<A> x_tile = read_tile<T, A>(problem.x, x, problem.channels, pixels, x_buffer);
        upsampler.tile(column, pixels, problem.multiplicative ? up_tile : s_tile);
        product<A>({pixels, inter, problem.channels, x_tile.data, x_tile.stride, 1, problem.w_x, inter, s_tile, inter,
                    !problem.multiplicative});
        if (problem.multiplicative) {
          gate_tile<A, true>(problem, pixels, s_tile, up_tile, alpha, nullptr);
        } else {
          uint8_t* mask = problem.mask + (row * width + column) * mask_bytes;
          gate_tile<A, false>(problem, pixels, s_tile, nullptr, alpha, mask);
        }
        T* alpha_out = pixel<T>(problem.alpha, n, y, column);
        for (int64_t p = 0; p < pixels; ++p) alpha_out[p * problem.alpha.w] = from_acc<T>(alpha[p]);
        if (problem.gate) {
          A* gate = problem.gate + row * width + column;
          for (int64_t p = 0; p < pixels; ++p) gate[p] = alpha[p];
        }
        scale_tile<T, A>(problem, pixels, x, x_tile, alpha, pixel<T>(problem.out, n, y, column));
      }
    }
  }
}

// From alpha's two uses: dlogit = (dalpha + dout . x) alpha (1 - alpha), and the first half of dx, alpha dout.
template <typename T, typename A>
inline void logit_tile(const Problem<A>& problem, int64_t pixels, const A* alpha, const T* dalpha,
                       const Tile<A>& x, const Tile<A>& dout, const Tile<A>& dx, A* dlogit) {
  const int64_t channels = padded<A>(problem.channels);
  for (int64_t p = 0; p < pixels; ++p) {
    const A gate = alpha[p];
    const A* __restrict x_pixel = x.data + p * x.stride;
    const A* __restrict dout_pixel = dout.data + p * dout.stride;
    A* __restrict dx_pixel = dx.data + p * dx.stride;
    Vector<A> sum{};
    for (int64_t c = 0; c < channels; c += kLanes<A>) {
      const Vector<A> gradient = load(dout_pixel + c);
      sum += gradient * load(x_pixel + c);
      store(dx_pixel + c, gradient * gate);
    }
    dlogit[p] = logit_gradient(to_acc(dalpha[p * problem.dalpha.w]) + sum_of<A>(sum), gate);
  }
}

// to[p, f] (+)= weight * dlogit[p] * [s_f > 0], from the saved bits.
template <typename A, bool kAdd>
inline void masked_tile(const Problem<A>& problem, int64_t pixels, const A* dlogit, A weight, const uint8_t* mask,
                        A* to) {
  constexpr int L = kLanes<A>;
  constexpr int kPanelVectors = kPanelBytes / kVectorBytes;
  const int64_t stride = padded<A>(problem.inter_channels);
  const int64_t mask_bytes = (problem.inter_channels + 7) / 8;
  for (int64_t p = 0; p < pixels; ++p, to += stride, mask += mask_bytes) {
    const Vector<A> value = broadcast(dlogit[p] * weight);
    for (int64_t panel = 0; panel < stride; panel += L * kPanelVectors) {
      const int64_t byte = panel / 8;
      const unsigned bits = panel_bits<A>(mask + byte, mask_bytes - byte);
      for (int v = 0; v < kPanelVectors; ++v) {
        const Vector<A> kept = keep<A>(value, lanes_of<A>(bits >> (v * L)));
        A* lanes = to + panel + v * L;
        store(lanes, kAdd ? load(lanes) + kept : kept);
      }
    }
  }
}

// Multiplicative mode. With ds = dlogit w_psi [s > 0] for s = t v:
// kOf = 0: to = ds v, the gradient of t = Wx x, and dw_psi += dlogit relu(s);
// kOf = 1: to += weight ds t, the gradient of v = up(Wg g + b_g).
template <typename A, int kOf>
inline void product_gradient_tile(const Problem<A>& problem, int64_t pixels, const A* dlogit, A weight, const A* t_tile,
                                  const A* v_tile, A* to, A* dw_psi) {
  const int64_t stride = padded<A>(problem.inter_channels);
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t f = 0; f < stride; f += kLanes<A>) {
      const Vector<A> t = load(t_tile + p * stride + f), v = load(v_tile + p * stride + f);
      const Vector<A> s = t * v;
      const Mask<A> active = active_lanes<A>(s, f, problem.inter_channels);
      const Vector<A> ds = keep<A>(load(problem.w_psi + f) * (dlogit[p] * weight), active);
      A* lanes = to + p * stride + f;
      if constexpr (kOf == 0) {
        store(lanes, ds * v);
        store(dw_psi + f, load(dw_psi + f) + keep<A>(s * dlogit[p], active));
      } else {
        store(lanes, load(lanes) + ds * t);
      }
    }
  }
}

// Reads x, dout, alpha and the bits once; writes dx and dlogit once. Additive mode touches neither g nor s.
template <typename T, typename A>
void backward_fine(const Problem<A>& problem, int64_t begin, int64_t end, const FinePartial<A>& partial) {
  const int64_t height = problem.rows.fine, width = problem.columns.fine;
  const int64_t inter = padded<A>(problem.inter_channels), channels = padded<A>(problem.channels);
  const int64_t mask_bytes = (problem.inter_channels + 7) / 8;
  Upsampler<T, A> upsampler(problem, problem.multiplicative ? kStripColumns : 0);
  Scratch<A> x_buffer(kTilePixels * channels), dout_buffer(kTilePixels * channels), dx_buffer(kTilePixels * channels);
  Scratch<A> ds_tile(kTilePixels * inter);
  Scratch<A> t_tile(problem.multiplicative ? kTilePixels * inter : 0);
  Scratch<A> v_tile(problem.multiplicative ? kTilePixels * inter : 0);

  for (int64_t strip = 0; strip < width; strip += kStripColumns) {
    const int64_t strip_end = least(width, strip + kStripColumns);
    if (problem.multiplicative) upsampler.start_strip(strip, strip_end);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / height, y = row % height;
      if (problem.multiplicative) upsampler.start_row(n, y);
      for (int64_t column = strip; column < strip_end; column += kTilePixels) {
        const int64_t pixels = least(kTilePixels, strip_end - column);
        const Tile<A> x = read_tile<T, A>(problem.x, pixel<const T>(problem.x, n, y, column), problem.channels, pixels,
                                          x_buffer);
        const Tile<A> dout = read_tile<T, A>(problem.dout, pixel<const T>(problem.dout, n, y, column),
                                             problem.channels, pixels, dout_buffer);
        T* dx_out = pixel<T>(problem.dx, n, y, column);
        const Tile<A> dx = target_tile<T, A>(problem.dx, dx_out, problem.channels, dx_buffer);
        A* dlogit = problem.dlogit + row * width + column;
        logit_tile<T, A>(problem, pixels, problem.gate + row * width + column,
                         pixel<const T>(problem.dalpha, n, y, column), x, dout, dx, dlogit);
        for (int64_t p = 0; p < pixels; ++p) *partial.db_psi += dlogit[p];

        if (problem.multiplicative) {
          product<A>({pixels, inter, problem.channels, x.data, x.stride, 1, problem.w_x, inter, t_tile, inter, false});
          upsampler.tile(column, pixels, v_tile);
          product_gradient_tile<A, 0>(problem, pixels, dlogit, A(1), t_tile, v_tile, ds_tile, partial.dw_psi);
        } else {
          const uint8_t* mask = problem.mask + (row * width + column) * mask_bytes;
          masked_tile<A, false>(problem, pixels, dlogit, A(1), mask, ds_tile);
        }
        product<A>({pixels, channels, problem.inter_channels, ds_tile, inter, 1, problem.w_x_back, channels, dx.data,
                    dx.stride, true});
        product<A>({problem.inter_channels, channels, pixels, ds_tile, 1, inter, x.data, x.stride, partial.x_sum,
                    channels, true});
        write_tile<T, A>(problem.dx, dx_out, problem.channels, pixels, dx);
      }
    }
  }
}

// The weight with which fine position i reads coarse position `coarse`.
template <typename A>
ASEGNET_HOST_DEVICE A weight_of(const Axis<A>& axis, int64_t i, int64_t coarse) {
  if (axis.lower[i] != coarse) return axis.upper[i] == coarse ? axis.upper_weight[i] : A(0);
  return axis.upper[i] == coarse ? A(1) : A(1) - axis.upper_weight[i];
}

// Gathers, for each coarse row, the gradient of u from the fine rows that read it: first down the columns into a
// tile of fine pixels, then along the row. Every coarse pixel is written by one thread in one order.
template <typename T, typename A>
void backward_coarse(const Problem<A>& problem, int64_t begin, int64_t end, const CoarsePartial<A>& partial) {
  const Axis<A>&rows = problem.rows, &columns = problem.columns;
  const int64_t inter = padded<A>(problem.inter_channels), gating = padded<A>(problem.gating_channels);
  const int64_t mask_bytes = (problem.inter_channels + 7) / 8;
  const int64_t strip_columns = least(columns.coarse, kCoarseStripColumns);
  Scratch<A> du(strip_columns * inter), fine_tile(kTilePixels * inter);
  Scratch<A> g_buffer(kTilePixels * gating), dg_buffer(kTilePixels * gating);
  Upsampler<T, A> upsampler(problem, problem.multiplicative ? kTilePixels : 0);
  Scratch<A> x_buffer(problem.multiplicative ? kTilePixels * padded<A>(problem.channels) : 0);
  Scratch<A> t_tile(problem.multiplicative ? kTilePixels * inter : 0);
  Scratch<A> v_tile(problem.multiplicative ? kTilePixels * inter : 0);

  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / rows.coarse, coarse_y = row % rows.coarse;
    for (int64_t strip = 0; strip < columns.coarse; strip += strip_columns) {
      const int64_t strip_end = least(columns.coarse, strip + strip_columns);
      for (int64_t i = 0; i < (strip_end - strip) * inter; ++i) du[i] = A(0);

      const int64_t fine_end = columns.end[strip_end - 1];
      for (int64_t column = columns.begin[strip]; column < fine_end; column += kTilePixels) {
        const int64_t pixels = least(kTilePixels, fine_end - column);
        for (int64_t i = 0; i < pixels * inter; ++i) fine_tile[i] = A(0);
        if (problem.multiplicative) upsampler.start_strip(column, column + pixels);
        for (int64_t y = rows.begin[coarse_y]; y < rows.end[coarse_y]; ++y) {
          const A weight = weight_of(rows, y, coarse_y);
          const int64_t at = (n * rows.fine + y) * columns.fine + column;
          if (!problem.multiplicative) {
            masked_tile<A, true>(problem, pixels, problem.dlogit + at, weight, problem.mask + at * mask_bytes,
                                 fine_tile);
            continue;
          }
          const Tile<A> x = read_tile<T, A>(problem.x, pixel<const T>(problem.x, n, y, column), problem.channels,
                                            pixels, x_buffer);
          product<A>({pixels, inter, problem.channels, x.data, x.stride, 1, problem.w_x, inter, t_tile, inter, false});
          upsampler.start_row(n, y);
          upsampler.tile(column, pixels, v_tile);
          product_gradient_tile<A, 1>(problem, pixels, problem.dlogit + at, weight, t_tile, v_tile, fine_tile, nullptr);
        }
        for (int64_t p = 0; p < pixels; ++p) {
          const int64_t lower = columns.lower[column + p], upper = columns.upper[column + p];
          for (int64_t coarse = most(lower, strip); coarse <= least(upper, strip_end - 1); ++coarse) {
            const Vector<A> weight = broadcast(weight_of(columns, column + p, coarse));
            A* to = du + (coarse - strip) * inter;
            const A* from = fine_tile + p * inter;
            for (int64_t f = 0; f < inter; f += kLanes<A>) store(to + f, load(to + f) + weight * load(from + f));
          }
        }
      }

      for (int64_t column = strip; column < strip_end; column += kTilePixels) {
        const int64_t pixels = least(kTilePixels, strip_end - column);
        const A* du_tile = du + (column - strip) * inter;
        const Tile<A> g = read_tile<T, A>(problem.g, pixel<const T>(problem.g, n, coarse_y, column),
                                          problem.gating_channels, pixels, g_buffer);
        T* dg_out = pixel<T>(problem.dg, n, coarse_y, column);
        const Tile<A> dg = target_tile<T, A>(problem.dg, dg_out, problem.gating_channels, dg_buffer);
        product<A>({pixels, gating, problem.inter_channels, du_tile, inter, 1, problem.w_g_back, gating, dg.data,
                    dg.stride, false});
        product<A>({problem.inter_channels, gating, pixels, du_tile, 1, inter, g.data, g.stride, partial.g_sum, gating,
                    true});
        for (int64_t p = 0; p < pixels; ++p) {
          for (int64_t f = 0; f < inter; ++f) partial.b_sum[f] += du_tile[p * inter + f];
        }
        write_tile<T, A>(problem.dg, dg_out, problem.gating_channels, pixels, dg);
      }
    }
  }
}

template <typename T>
constexpr RowKernels<acc_t<T>> kernels_for() {
  return {forward<T, acc_t<T>>, backward_fine<T, acc_t<T>>, backward_coarse<T, acc_t<T>>};
}

}  // namespace

namespace ASEGNET_ISA {
const Kernels kernels = {kernels_for<float>(), kernels_for<BFloat16>(), kernels_for<Float16>(), kernels_for<double>()};
}  // namespace ASEGNET_ISA

}  // namespace asegnet::attention_gate
