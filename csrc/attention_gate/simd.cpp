// The attention gate's CPU kernels, compiled once per instruction set: raw pointers, one anonymous namespace.
#include "attention_gate/kernels.h"
#include "attention_gate/math.h"
#include "attention_gate/tiles.h"

namespace asegnet::attention_gate {
namespace {

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
  for (int64_t p = 0; p < kTilePixels; p += L) store(alpha + p, sigmoid_lanes(load(alpha + p)));
}

template <typename A>
Grid fine_grid(const Problem<A>& problem) {
  return {problem.rows.fine, problem.columns.fine};
}

template <typename A>
Grid coarse_grid(const Problem<A>& problem) {
  return {problem.rows.coarse, problem.columns.coarse};
}

// u = Wg g + b_g.
template <typename T, typename A>
void gating(const Problem<A>& problem, int64_t begin, int64_t end) {
  const Grid grid = coarse_grid(problem);
  const int64_t inter = padded<A>(problem.inter_channels), channels = problem.gating_channels;
  const bool by_channel = channel_major(problem.g);
  Scratch<A> buffer(tile_size<A>(channels));
  for (; begin < end; begin += kTilePixels) {
    const int64_t pixels = least(kTilePixels, end - begin);
    const Tile<A> g = read_tile<T, A>(problem.g, grid, begin, pixels, channels, by_channel, buffer);
    A* to = problem.u + begin * inter;
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t f = 0; f < inter; f += kLanes<A>) store(to + p * inter + f, load(problem.b_g + f));
    }
    const int64_t next = begin + kTilePixels;
    Ahead ahead = ahead_of<T>(problem.g, grid, next, least(kTilePixels, end - next), channels);
    product<A>({pixels, inter, channels, g.rows(), panels(problem.w_g, channels), to, inter, true}, ahead);
  }
}

// Reads x once, writes out, alpha and F bits per pixel.
template <typename T, typename A>
void forward(const Problem<A>& problem, int64_t begin, int64_t end) {
  const Grid grid = fine_grid(problem);
  const int64_t inter = padded<A>(problem.inter_channels), channels = problem.channels;
  const int64_t mask_bytes = (problem.inter_channels + 7) / 8;
  const bool by_channel = channel_major(problem.x);
  Scratch<A> x_buffer(tile_size<A>(channels)), blended((kTilePixels + 1) * inter);
  Scratch<A> s_tile(kTilePixels * inter), up_tile(problem.multiplicative ? kTilePixels * inter : 0);
  alignas(64) A alpha[kTilePixels] = {};

  for (; begin < end; begin += kTilePixels) {
    const int64_t pixels = least(kTilePixels, end - begin);
    const Tile<A> x = read_tile<T, A>(problem.x, grid, begin, pixels, channels, by_channel, x_buffer);
    upsample_tile<A>(problem, begin, pixels, problem.multiplicative ? up_tile : s_tile, blended);
    const int64_t next = begin + kTilePixels;
    Ahead ahead = ahead_of<T>(problem.x, grid, next, least(kTilePixels, end - next), channels);
    product<A>({pixels, inter, channels, x.rows(), panels(problem.w_x, channels), s_tile, inter,
                !problem.multiplicative}, ahead);
    if (problem.multiplicative) {
      gate_tile<A, true>(problem, pixels, s_tile, up_tile, alpha, nullptr);
    } else {
      gate_tile<A, false>(problem, pixels, s_tile, nullptr, alpha, problem.mask + begin * mask_bytes);
    }
    if (problem.gate) {
      for (int64_t p = 0; p < pixels; ++p) problem.gate[begin + p] = alpha[p];
    }
    for_runs(problem.alpha, grid, begin, pixels, [&](int64_t first, int64_t count, int64_t offset) {
      T* to = pixel<T>(problem.alpha, grid, first);
      for (int64_t p = 0; p < count; ++p) to[p * problem.alpha.w] = from_acc<T>(alpha[offset + p]);
    });
    write_tile<T, A>(problem.out, grid, begin, pixels, channels, x, alpha, problem.stream);
  }
  if (problem.stream) stream_fence();
}

// From alpha's two uses: dlogit = (dalpha + dout . x) alpha (1 - alpha), and the first half of dx, alpha dout.
// `alpha` has kTilePixels entries; so has dlogit, which holds dalpha on entry.
template <typename A>
inline void logit_tile(int64_t pixels, int64_t channels, bool by_channel, const A* alpha, const Tile<A>& x,
                       const Tile<A>& dout, const Tile<A>& dx, A* dlogit) {
  constexpr int L = kLanes<A>, kTogether = 4;
  if (by_channel) {
    for (int64_t p = 0; p < kTilePixels; p += kTogether * L) {
      Vector<A> sum[kTogether] = {};
      for (int64_t c = 0; c < channels; ++c) {
#pragma GCC unroll 4
        for (int v = 0; v < kTogether; ++v) {
          const int64_t at = c * kTilePixels + p + v * L;
          const Vector<A> gradient = load(dout.data + at);
          sum[v] += gradient * load(x.data + at);
          store(dx.data + at, gradient * load(alpha + p + v * L));
        }
      }
      for (int v = 0; v < kTogether; ++v) {
        A* at = dlogit + p + v * L;
        store(at, logit_gradient<A>(load(at) + sum[v], load(alpha + p + v * L)));
      }
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    const A gate = alpha[p];
    const A* __restrict x_pixel = x.data + p * x.pixel;
    const A* __restrict dout_pixel = dout.data + p * dout.pixel;
    A* __restrict dx_pixel = dx.data + p * dx.pixel;
    Vector<A> sum[2] = {};
    for (int64_t c = 0; c < padded<A>(channels); c += L) {
      const Vector<A> gradient = load(dout_pixel + c);
      sum[c / L % 2] += gradient * load(x_pixel + c);
      store(dx_pixel + c, gradient * gate);
    }
    dlogit[p] = logit_gradient<A>(dlogit[p] + sum_of<A>(sum[0] + sum[1]), gate);
  }
}

// A tile of ds in panels of F, ready for the products: element (p, f).
template <typename A>
ASEGNET_HOST_DEVICE int64_t panel_at(int64_t p, int64_t f) {
  return f / kPanel<A> * (kTilePixels * kPanel<A>) + p * kPanel<A> + f % kPanel<A>;
}

// to[p, f] = dlogit[p] * [s_f > 0], from the saved bits, in panels.
template <typename A>
inline void masked_tile(int64_t inter_channels, int64_t pixels, const A* dlogit, const uint8_t* mask, A* to) {
  constexpr int L = kLanes<A>;
  const int64_t mask_bytes = (inter_channels + 7) / 8;
  for (int64_t panel = 0; panel < inter_channels; panel += kPanel<A>) {
    const uint8_t* from = mask + panel / 8;
    for (int64_t p = 0; p < pixels; ++p, from += mask_bytes, to += kPanel<A>) {
      const Vector<A> value = broadcast(dlogit[p]);
      const unsigned bits = panel_bits<A>(from, mask_bytes - panel / 8);
      for (int v = 0; v < kPanel<A>; v += L) store(to + v, keep<A>(value, lanes_of<A>(bits >> v)));
    }
    to += (kTilePixels - pixels) * kPanel<A>;
  }
}

// The two products of a tile of ds: the gradient of the tile `x`, ds back, and the sum over pixels of x ds^T.
template <typename A>
inline void gradient_products(int64_t inter_channels, int64_t channels, int64_t pixels, bool by_channel, const A* ds,
                              A* transposed, const A* back, const Tile<A>& x, const Tile<A>& dx, bool accumulate,
                              A* sum, Ahead& first, Ahead& second) {
  constexpr int64_t W = kPanel<A>, kPanelSize = kTilePixels * W;
  if (by_channel) {
    for (int64_t f = 0; f < inter_channels; ++f) {
      const A* __restrict from = ds + panel_at<A>(0, f);
      for (int64_t panel = 0; panel < padded<A>(pixels); panel += W) {
        A* __restrict to = transposed + panel * inter_channels + f * W;
        for (int64_t p = 0; p < W; ++p) to[p] = from[(panel + p) * W];
      }
    }
    product<A>({channels, padded<A>(pixels), inter_channels, {back, inter_channels, 1, W},
                panels(static_cast<const A*>(transposed), inter_channels), dx.data, dx.channel, accumulate}, first);
  } else {
    product<A>({pixels, padded<A>(channels), inter_channels, {ds, W, 1, kPanelSize}, panels(back, inter_channels),
                dx.data, dx.pixel, accumulate}, first);
  }
  product<A>({channels, padded<A>(inter_channels), pixels, x.transposed(), {ds, W, 1, kPanelSize}, sum,
              padded<A>(inter_channels), true}, second);
}

// Multiplicative mode. With ds = dlogit w_psi [s > 0] for s = t v:
// kOf = 0: to = ds v, the gradient of t = Wx x, in panels, and dw_psi += dlogit relu(s);
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
      A* lanes = to + (kOf == 0 ? panel_at<A>(p, f) : p * stride + f);
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
  const Grid grid = fine_grid(problem);
  const int64_t inter = padded<A>(problem.inter_channels), channels = problem.channels;
  const int64_t mask_bytes = (problem.inter_channels + 7) / 8;
  const bool by_channel = channel_major(problem.x);
  Scratch<A> x_buffer(tile_size<A>(channels)), dout_buffer(tile_size<A>(channels)), dx_buffer(tile_size<A>(channels));
  Scratch<A> ds(kTilePixels * inter), transposed(by_channel ? kTilePixels * inter : 0);
  const int64_t product_size = problem.multiplicative ? kTilePixels * inter : 0;
  Scratch<A> t_tile(product_size), v_tile(product_size), blended(product_size ? product_size + inter : 0);
  const Tile<A> dx = tile_in<A>(dx_buffer, channels, by_channel);
  alignas(64) A alpha[kTilePixels] = {}, dlogit[kTilePixels] = {}, ones[kTilePixels];
  for (A& one : ones) one = A(1);

  for (; begin < end; begin += kTilePixels) {
    const int64_t pixels = least(kTilePixels, end - begin);
    const Tile<A> x = read_tile<T, A>(problem.x, grid, begin, pixels, channels, by_channel, x_buffer);
    const Tile<A> dout = read_tile<T, A>(problem.dout, grid, begin, pixels, channels, by_channel, dout_buffer);
    for (int64_t p = 0; p < pixels; ++p) alpha[p] = problem.gate[begin + p];
    for_runs(problem.dalpha, grid, begin, pixels, [&](int64_t first, int64_t count, int64_t offset) {
      const T* from = pixel<const T>(problem.dalpha, grid, first);
      for (int64_t p = 0; p < count; ++p) dlogit[offset + p] = to_acc(from[p * problem.dalpha.w]);
    });
    logit_tile<A>(pixels, channels, by_channel, alpha, x, dout, dx, dlogit);
    for (int64_t p = 0; p < pixels; ++p) {
      problem.dlogit[begin + p] = dlogit[p];
      *partial.db_psi += dlogit[p];
    }

    if (problem.multiplicative) {
      product<A>({pixels, inter, channels, x.rows(), panels(problem.w_x, channels), t_tile, inter, false});
      upsample_tile<A>(problem, begin, pixels, v_tile, blended);
      product_gradient_tile<A, 0>(problem, pixels, dlogit, A(1), t_tile, v_tile, ds, partial.dw_psi);
    } else {
      masked_tile<A>(problem.inter_channels, pixels, dlogit, problem.mask + begin * mask_bytes, ds);
    }
    const int64_t next = begin + kTilePixels, next_pixels = least(kTilePixels, end - next);
    Ahead x_ahead = ahead_of<T>(problem.x, grid, next, next_pixels, channels);
    Ahead dout_ahead = ahead_of<T>(problem.dout, grid, next, next_pixels, channels);
    gradient_products<A>(problem.inter_channels, channels, pixels, by_channel, ds, transposed, problem.w_x_back, x, dx,
                         true, partial.x_sum, x_ahead, dout_ahead);
    write_tile<T, A>(problem.dx, grid, begin, pixels, channels, dx, ones, problem.stream);
  }
  if (problem.stream) stream_fence();
}

// The weight with which fine position i reads coarse position `coarse`.
template <typename A>
ASEGNET_HOST_DEVICE A weight_of(const Axis<A>& axis, int64_t i, int64_t coarse) {
  if (axis.lower[i] != coarse) return axis.upper[i] == coarse ? axis.upper_weight[i] : A(0);
  return axis.upper[i] == coarse ? A(1) : A(1) - axis.upper_weight[i];
}

// to[p, f] (+)= the sum over `rows` fine rows (at most 4) of weight * dlogit * [s_f > 0].
template <typename A>
inline void masked_rows(const Problem<A>& problem, int64_t rows, const int64_t* at, const A* weights, int64_t pixels,
                        bool add, A* to) {
  constexpr int L = kLanes<A>;
  constexpr int kVectors = static_cast<int>(kPanel<A>) / L;
  const int64_t stride = padded<A>(problem.inter_channels), mask_bytes = (problem.inter_channels + 7) / 8;
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t panel = 0; panel < stride; panel += kPanel<A>) {
      const int64_t byte = panel / 8;
      A* lanes = to + p * stride + panel;
      Vector<A> sum[kVectors];
      for (int v = 0; v < kVectors; ++v) sum[v] = add ? load(lanes + v * L) : Vector<A>{};
      for (int64_t row = 0; row < rows; ++row) {
        const Vector<A> value = broadcast(problem.dlogit[at[row] + p] * weights[row]);
        const unsigned bits = panel_bits<A>(problem.mask + (at[row] + p) * mask_bytes + byte, mask_bytes - byte);
        for (int v = 0; v < kVectors; ++v) sum[v] += keep<A>(value, lanes_of<A>(bits >> (v * L)));
      }
      for (int v = 0; v < kVectors; ++v) store(lanes + v * L, sum[v]);
    }
  }
}

// The gradient of u, for each coarse row from the fine rows that read it: first down the columns into a tile of fine
// pixels, then along the row. Every coarse pixel is written by one thread in one order.
template <typename T, typename A>
void gather(const Problem<A>& problem, int64_t begin, int64_t end) {
  const Axis<A>&rows = problem.rows, &columns = problem.columns;
  const Grid grid = fine_grid(problem);
  const int64_t inter = padded<A>(problem.inter_channels), channels = problem.channels;
  const bool by_channel = channel_major(problem.x);
  Scratch<A> fine_tile(kTilePixels * inter);
  const int64_t product_size = problem.multiplicative ? kTilePixels * inter : 0;
  Scratch<A> t_tile(product_size), v_tile(product_size), blended(product_size ? product_size + inter : 0);
  Scratch<A> x_buffer(problem.multiplicative ? tile_size<A>(channels) : 0);

  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / rows.coarse, coarse_y = row % rows.coarse;
    A* du = problem.du + row * columns.coarse * inter;
    for (int64_t i = 0; i < columns.coarse * inter; i += kLanes<A>) store(du + i, Vector<A>{});
    for (int64_t column = 0; column < columns.fine; column += kTilePixels) {
      const int64_t pixels = least(kTilePixels, columns.fine - column);
      constexpr int64_t kMost = 4;
      for (int64_t y = rows.begin[coarse_y]; y < rows.end[coarse_y]; y += kMost) {
        const int64_t count = least(kMost, rows.end[coarse_y] - y);
        const bool add = y > rows.begin[coarse_y];
        int64_t at[kMost];
        A weights[kMost];
        for (int64_t i = 0; i < count; ++i) {
          at[i] = (n * rows.fine + y + i) * columns.fine + column;
          weights[i] = weight_of(rows, y + i, coarse_y);
        }
        if (!problem.multiplicative) {
          masked_rows<A>(problem, count, at, weights, pixels, add, fine_tile);
          continue;
        }
        if (!add) __builtin_memset(fine_tile, 0, sizeof(A) * static_cast<uint64_t>(pixels * inter));
        for (int64_t i = 0; i < count; ++i) {
          const Tile<A> x = read_tile<T, A>(problem.x, grid, at[i], pixels, channels, by_channel, x_buffer);
          product<A>({pixels, inter, channels, x.rows(), panels(problem.w_x, channels), t_tile, inter, false});
          upsample_tile<A>(problem, at[i], pixels, v_tile, blended);
          product_gradient_tile<A, 1>(problem, pixels, problem.dlogit + at[i], weights[i], t_tile, v_tile, fine_tile,
                                      nullptr);
        }
      }
      if (rows.begin[coarse_y] >= rows.end[coarse_y]) continue;
      for (int64_t p = 0; p < pixels; ++p) {
        for (int64_t coarse = columns.lower[column + p]; coarse <= columns.upper[column + p]; ++coarse) {
          const Vector<A> weight = broadcast(weight_of(columns, column + p, coarse));
          A* to = du + coarse * inter;
          const A* from = fine_tile + p * inter;
          for (int64_t f = 0; f < inter; f += kLanes<A>) store(to + f, load(to + f) + weight * load(from + f));
        }
      }
    }
  }
}

template <typename T, typename A>
void backward_coarse(const Problem<A>& problem, int64_t begin, int64_t end, const CoarsePartial<A>& partial) {
  const Grid grid = coarse_grid(problem);
  const int64_t inter = padded<A>(problem.inter_channels), channels = problem.gating_channels;
  const bool by_channel = channel_major(problem.g);
  Scratch<A> g_buffer(tile_size<A>(channels)), dg_buffer(tile_size<A>(channels));
  Scratch<A> ds(kTilePixels * inter), transposed(by_channel ? kTilePixels * inter : 0);
  const Tile<A> dg = tile_in<A>(dg_buffer, channels, by_channel);
  A ones[kTilePixels];
  for (A& one : ones) one = A(1);

  for (; begin < end; begin += kTilePixels) {
    const int64_t pixels = least(kTilePixels, end - begin);
    const Tile<A> g = read_tile<T, A>(problem.g, grid, begin, pixels, channels, by_channel, g_buffer);
    for (int64_t p = 0; p < pixels; ++p) {
      const A* du = problem.du + (begin + p) * inter;
      for (int64_t f = 0; f < inter; f += kLanes<A>) {
        store(partial.b_sum + f, load(partial.b_sum + f) + load(du + f));
        store(ds + panel_at<A>(p, f), load(du + f));
      }
    }
    const int64_t next = begin + kTilePixels;
    Ahead ahead = ahead_of<T>(problem.g, grid, next, least(kTilePixels, end - next), channels), nothing;
    gradient_products<A>(problem.inter_channels, channels, pixels, by_channel, ds, transposed, problem.w_g_back, g, dg,
                         false, partial.g_sum, ahead, nothing);
    write_tile<T, A>(problem.dg, grid, begin, pixels, channels, dg, ones, problem.stream);
  }
  if (problem.stream) stream_fence();
}

template <typename T>
constexpr RowKernels<acc_t<T>> kernels_for() {
  using A = acc_t<T>;
  return {gating<T, A>, forward<T, A>, backward_fine<T, A>, gather<T, A>, backward_coarse<T, A>};
}

}  // namespace

namespace ASEGNET_ISA {
const Kernels kernels = {kernels_for<float>(), kernels_for<BFloat16>(), kernels_for<Float16>(), kernels_for<double>()};
}  // namespace ASEGNET_ISA

}  // namespace asegnet::attention_gate
