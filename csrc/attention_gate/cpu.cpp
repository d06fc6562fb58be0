// Tensors in, tensors out: packed weights, upsampling tables, threads over rows, and partial sums in a fixed order.
#include <algorithm>
#include <memory>

#include "attention_gate/kernels.h"
#include "attention_gate/math.h"
#include "common/cache.h"
#include "common/half.h"
#include "common/tensor.h"

namespace asegnet::attention_gate {
namespace {

struct Inputs {
  const Tensor &x, &g;                    // [N, Cx, H, W], [N, Cg, Hg, Wg]
  const Tensor &w_x, &w_g, &b_g;          // [F, Cx], [F, Cg], [F]
  const Tensor &w_psi, &b_psi;            // [F], [1]
  bool multiplicative, nearest;
};

struct Sizes {
  Dims x, g;
  int64_t inter_channels;
  int64_t mask_bytes() const { return (inter_channels + 7) / 8; }
};

void check_shape(const Tensor& t, const char* name, std::initializer_list<int64_t> sizes) {
  bool ok = t.dim() == static_cast<int64_t>(sizes.size());
  for (int64_t d = 0; ok && d < t.dim(); ++d) ok = t.size(d) == sizes.begin()[d];
  if (ok) return;
  std::ostringstream expected;
  for (int64_t size : sizes) expected << (expected.tellp() ? ", " : "shape [") << size;
  fail(name, expected.str() + "]", shape_string(t));
}

Sizes check_inputs(const Inputs& in) {
  const Sizes s{dims4(in.x, "x"), dims4(in.g, "g"), in.w_psi.numel()};
  check(s.g.n == s.x.n, "g", "as many images as x", shape_string(in.g));
  check(s.g.h <= s.x.h && s.g.w <= s.x.w, "g", "a map no finer than x", shape_string(in.g));
  check(s.x.numel() == 0 || s.g.numel() > 0, "g", "a map of at least one pixel", shape_string(in.g));
  check(s.x.c > 0 && s.g.c > 0 && s.inter_channels > 0, "w_psi", "at least one channel everywhere", "none");
  check_shape(in.w_x, "w_x", {s.inter_channels, s.x.c});
  check_shape(in.w_g, "w_g", {s.inter_channels, s.g.c});
  check_shape(in.b_g, "b_g", {s.inter_channels});
  check_shape(in.w_psi, "w_psi", {s.inter_channels});
  check_shape(in.b_psi, "b_psi", {1});
  for (const Tensor* t : {&in.g, &in.w_x, &in.w_g, &in.b_g, &in.w_psi, &in.b_psi}) {
    check(t->scalar_type() == in.x.scalar_type(), "every argument", "the dtype of x", "another dtype");
  }
  return s;
}

Image image_of(const Tensor& t) {
  // The kernels write only through the images of tensors that were allocated here.
  return {const_cast<void*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// One axis of the upsampling with the memory behind its tables.
template <class A>
struct AxisTables {
  std::vector<int64_t> lower, upper, begin, end;
  std::vector<A> weight;
  bool blend;

  AxisTables(int64_t fine, int64_t coarse, bool nearest)
      : lower(fine), upper(fine), begin(coarse, fine), end(coarse, fine), weight(fine),
        blend(!nearest && fine != coarse) {
    for (int64_t i = 0; i < fine; ++i) {
      const Tap<A> tap = blend ? bilinear_tap<A>(i, fine, coarse)
                         : fine == coarse ? Tap<A>{i, i, A(0)} : nearest_tap<A>(i, fine, coarse);
      lower[i] = tap.lower, upper[i] = tap.upper, weight[i] = tap.upper_weight;
    }
    for (int64_t j = 0; j < coarse; ++j) {
      begin[j] = std::lower_bound(upper.begin(), upper.end(), j) - upper.begin();
      end[j] = std::upper_bound(lower.begin(), lower.end(), j) - lower.begin();
    }
  }

  Axis<A> view() const {
    return {static_cast<int64_t>(lower.size()), static_cast<int64_t>(begin.size()), blend, lower.data(), upper.data(),
            weight.data(), begin.data(), end.data()};
  }
};

// A weight tensor in the accumulation type, dense [rows, columns].
template <class T>
std::vector<acc_t<T>> values_of(const Tensor& t) {
  const Tensor flat = torch::stable::contiguous(t);
  const T* from = static_cast<const T*>(flat.const_data_ptr());
  std::vector<acc_t<T>> to(flat.numel());
  for (size_t i = 0; i < to.size(); ++i) to[i] = to_acc(from[i]);
  return to;
}

template <class T>
void write_values(const std::vector<acc_t<T>>& from, const Tensor& t) {
  T* to = static_cast<T*>(t.mutable_data_ptr());
  for (size_t i = 0; i < from.size(); ++i) to[i] = from_acc<T>(from[i]);
}

// Calls run(first, last) for blocks of one panel, on as many threads as the work is worth: a transposition that goes
// block by block uses every cache line whole.
template <typename A, class Run>
void over_panels(int64_t count, int64_t work_per_item, const Run& run) {
  constexpr int64_t panel = kPanelBytes / static_cast<int64_t>(sizeof(A));
  parallel_for(0, padded<A>(count) / panel, grain(panel * work_per_item), [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) run(begin * panel, std::min(count, (begin + 1) * panel));
  });
}

// element(k, n) in panels of n: [padded n_count / panel][k][panel], zero past n_count.
template <typename A, class Element>
std::vector<A> pack_panels(int64_t k_count, int64_t n_count, const Element& element) {
  constexpr int64_t panel = kPanelBytes / static_cast<int64_t>(sizeof(A));
  std::vector<A> packed(padded<A>(n_count) * k_count, A(0));
  over_panels<A>(n_count, k_count, [&](int64_t first, int64_t last) {
    A* to = packed.data() + first * k_count;
    for (int64_t k = 0; k < k_count; ++k, to += panel) {
      for (int64_t n = first; n < last; ++n) to[n - first] = element(k, n);
    }
  });
  return packed;
}

// weight [F, C] in panels of F, for the product with a tile of C channels.
template <typename A>
std::vector<A> pack(const std::vector<A>& weight, int64_t f_count) {
  const int64_t c_count = static_cast<int64_t>(weight.size()) / f_count;
  return pack_panels<A>(c_count, f_count, [&](int64_t c, int64_t f) { return weight[f * c_count + c]; });
}

// The same with row f times scale[f], for the gradient of that tile: in panels of C, or [C, F] for a tile by channel.
template <typename A>
std::vector<A> pack_back(const std::vector<A>& weight, int64_t f_count, const std::vector<A>* scale, bool by_channel) {
  const int64_t c_count = static_cast<int64_t>(weight.size()) / f_count;
  const auto element = [&](int64_t f, int64_t c) { return weight[f * c_count + c] * (scale ? (*scale)[f] : A(1)); };
  if (!by_channel) return pack_panels<A>(f_count, c_count, element);
  std::vector<A> packed(weight.size());
  over_panels<A>(c_count, f_count, [&](int64_t first, int64_t last) {
    for (int64_t f = 0; f < f_count; ++f) {
      for (int64_t c = first; c < last; ++c) packed[c * f_count + f] = element(f, c);
    }
  });
  return packed;
}

template <typename A>
std::vector<A> pad(std::vector<A> values) {
  values.resize(padded<A>(static_cast<int64_t>(values.size())), A(0));
  return values;
}

// A Problem with the memory behind its pointers.
template <class T>
struct Setup {
  using A = acc_t<T>;
  Sizes sizes;
  AxisTables<A> rows, columns;
  std::vector<A> w_x, w_g, b_g, w_psi;              // as given, [F, C] and [F]
  std::vector<A> w_x_packed, w_g_packed, b_g_packed, w_psi_packed, w_x_back, w_g_back;
  Problem<A> problem;

  Setup(const Inputs& in, const Sizes& s, bool backward)
      : sizes(s), rows(s.x.h, s.g.h, in.nearest), columns(s.x.w, s.g.w, in.nearest), w_x(values_of<T>(in.w_x)),
        w_g(values_of<T>(in.w_g)), b_g(values_of<T>(in.b_g)), w_psi(values_of<T>(in.w_psi)) {
    const int64_t f = s.inter_channels;
    w_x_packed = pack<A>(w_x, f);
    w_g_packed = pack<A>(w_g, f);
    b_g_packed = pad<A>(b_g);
    w_psi_packed = pad<A>(w_psi);
    problem.x = image_of(in.x);
    problem.g = image_of(in.g);
    if (backward) {
      const std::vector<A>* scale = in.multiplicative ? nullptr : &w_psi;
      w_x_back = pack_back<A>(w_x, f, scale, channel_major(problem.x));
      w_g_back = pack_back<A>(w_g, f, scale, channel_major(problem.g));
    }
    const int64_t element = static_cast<int64_t>(sizeof(T));
    problem.stream = exceeds_cache(element * ((backward ? 3 : 2) * s.x.numel() + (backward ? 2 : 1) * s.g.numel()));
    problem.channels = s.x.c;
    problem.gating_channels = s.g.c;
    problem.inter_channels = f;
    problem.multiplicative = in.multiplicative;
    problem.rows = rows.view();
    problem.columns = columns.view();
    problem.w_x = w_x_packed.data();
    problem.w_g = w_g_packed.data();
    problem.b_g = b_g_packed.data();
    problem.w_psi = w_psi_packed.data();
    problem.b_psi = values_of<T>(in.b_psi)[0];
    problem.w_x_back = w_x_back.data();
    problem.w_g_back = w_g_back.data();
  }
};

template <class T>
const RowKernels<acc_t<T>>& row_kernels() {
  if constexpr (std::is_same_v<T, float>) return kernels().float32;
  else if constexpr (std::is_same_v<T, double>) return kernels().float64;
  else if constexpr (std::is_same_v<T, BFloat16>) return kernels().bfloat16;
  else return kernels().float16;
}

// Calls run(begin, end) for ranges of pixels that begin at a tile.
template <class Run>
void over_tiles(int64_t pixels, int64_t channels, const Run& run) {
  parallel_for(0, (pixels + kTilePixels - 1) / kTilePixels, grain(kTilePixels * channels),
               [&](int64_t begin, int64_t end) { run(begin * kTilePixels, std::min(end * kTilePixels, pixels)); });
}

template <class T>
std::unique_ptr<acc_t<T>[]> make_u(Setup<T>& setup, const RowKernels<acc_t<T>>& run) {
  const Sizes& sizes = setup.sizes;
  const int64_t pixels = sizes.g.n * sizes.g.h * sizes.g.w;
  std::unique_ptr<acc_t<T>[]> u(new acc_t<T>[pixels * padded<acc_t<T>>(sizes.inter_channels)]);
  setup.problem.u = u.get();
  over_tiles(pixels, sizes.g.c, [&](int64_t begin, int64_t end) { run.gating(setup.problem, begin, end); });
  return u;
}

template <class T>
void forward_as(const Inputs& in, const Sizes& sizes, const Tensor& out, const Tensor& alpha, const Tensor& gate,
                const Tensor& mask) {
  Setup<T> setup(in, sizes, false);
  setup.problem.out = image_of(out);
  setup.problem.alpha = image_of(alpha);
  setup.problem.gate = gate.numel() ? static_cast<acc_t<T>*>(gate.mutable_data_ptr()) : nullptr;
  setup.problem.mask = in.multiplicative ? nullptr : static_cast<uint8_t*>(mask.mutable_data_ptr());
  const RowKernels<acc_t<T>>& run = row_kernels<T>();
  const std::unique_ptr<acc_t<T>[]> u = make_u(setup, run);
  over_tiles(sizes.x.n * sizes.x.h * sizes.x.w, sizes.x.c,
             [&](int64_t begin, int64_t end) { run.forward(setup.problem, begin, end); });
}

// Pixels are summed in a number of chunks that depends on the shapes alone, and the chunks are added in order:
// the same bits for any number of threads.
int64_t chunk_count(int64_t pixels, int64_t partial_bytes) {
  constexpr int64_t kMost = 64, kPixels = 4 * kTilePixels, kBytes = int64_t(32) << 20;
  const int64_t fit = std::max<int64_t>(8, kBytes / partial_bytes);
  return std::max<int64_t>(1, std::min({kMost, pixels / kPixels, fit}));
}

// Calls run(begin, end, partial) for each chunk of pixels and returns the sum of the partials.
template <class A, class Run>
std::vector<A> sum_over_pixels(int64_t pixels, int64_t partial_size, const Run& run) {
  const int64_t chunks = chunk_count(pixels, partial_size * static_cast<int64_t>(sizeof(A)));
  const int64_t tiles = (pixels + kTilePixels - 1) / kTilePixels;
  const std::unique_ptr<A[]> partials(new A[chunks * partial_size]);
  parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      A* partial = partials.get() + chunk * partial_size;
      std::fill_n(partial, partial_size, A(0));
      const int64_t begin = chunk * tiles / chunks, end = (chunk + 1) * tiles / chunks;
      run(begin * kTilePixels, std::min(end * kTilePixels, pixels), partial);
    }
  });
  std::vector<A> sum(partial_size);
  parallel_for(0, partial_size, grain(chunks), [&](int64_t begin, int64_t end) {
    std::copy(partials.get() + begin, partials.get() + end, sum.begin() + begin);
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
      const A* partial = partials.get() + chunk * partial_size;
      for (int64_t i = begin; i < end; ++i) sum[i] += partial[i];
    }
  });
  return sum;
}

struct Gradients {
  Tensor dx, dg, dw_x, dw_g, db_g, dw_psi, db_psi;
};

template <class T>
void backward_as(const Inputs& in, const Sizes& sizes, const Tensor& dout, const Tensor& dalpha, const Tensor& gate,
                 const Tensor& mask, const Gradients& out) {
  using A = acc_t<T>;
  Setup<T> setup(in, sizes, true);
  Problem<A>& problem = setup.problem;
  problem.dout = image_of(dout);
  problem.dalpha = image_of(dalpha);
  problem.gate = static_cast<A*>(const_cast<void*>(gate.const_data_ptr()));
  problem.dx = image_of(out.dx);
  problem.dg = image_of(out.dg);
  problem.mask = in.multiplicative ? nullptr : static_cast<uint8_t*>(const_cast<void*>(mask.const_data_ptr()));
  const std::unique_ptr<A[]> dlogit(new A[sizes.x.n * sizes.x.h * sizes.x.w]);
  problem.dlogit = dlogit.get();

  const int64_t f_count = sizes.inter_channels, f_size = padded<A>(f_count), cx = sizes.x.c, cg = sizes.g.c;
  const int64_t x_size = cx * f_size, g_size = cg * f_size;
  const int64_t fine_pixels = sizes.x.n * sizes.x.h * sizes.x.w, coarse_pixels = sizes.g.n * sizes.g.h * sizes.g.w;
  const RowKernels<A>& run = row_kernels<T>();
  const std::unique_ptr<A[]> u = in.multiplicative ? make_u(setup, run) : nullptr;
  const std::vector<A> fine =
      sum_over_pixels<A>(fine_pixels, x_size + f_size + 1, [&](int64_t begin, int64_t end, A* at) {
        run.backward_fine(problem, begin, end, FinePartial<A>{at, at + x_size, at + x_size + f_size});
      });
  const std::unique_ptr<A[]> du(new A[coarse_pixels * f_size]);
  problem.du = du.get();
  parallel_for(0, sizes.g.n * sizes.g.h, grain(4 * sizes.g.w * f_count),
               [&](int64_t begin, int64_t end) { run.gather(problem, begin, end); });
  const std::vector<A> coarse = sum_over_pixels<A>(
      coarse_pixels, g_size + f_size, [&](int64_t begin, int64_t end, A* at) {
        run.backward_coarse(problem, begin, end, CoarsePartial<A>{at, at + g_size});
      });

  // ds = dlogit w_psi m, so the sums over m need only w_psi; and since s = m s is linear in the weights where m
  // is 1, sum dlogit relu(s) follows from the same sums.
  std::vector<A> dw_x(f_count * cx), dw_g(f_count * cg), db_g(f_count), dw_psi(f_count);
  over_panels<A>(f_count, cx + cg, [&](int64_t first, int64_t last) {
    const auto scale = [&](int64_t f) { return in.multiplicative ? A(1) : setup.w_psi[f]; };
    for (int64_t f = first; f < last; ++f) {
      db_g[f] = scale(f) * coarse[g_size + f];
      dw_psi[f] = setup.b_g[f] * coarse[g_size + f];
    }
    const auto finish = [&](const std::vector<A>& sums, const std::vector<A>& weight, int64_t channels, A* gradient) {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t f = first; f < last; ++f) {
          const A sum = sums[c * f_size + f];
          gradient[f * channels + c] = scale(f) * sum;
          dw_psi[f] += weight[f * channels + c] * sum;
        }
      }
    };
    finish(fine, setup.w_x, cx, dw_x.data());
    finish(coarse, setup.w_g, cg, dw_g.data());
    if (!in.multiplicative) return;
    for (int64_t f = first; f < last; ++f) dw_psi[f] = fine[x_size + f];
  });
  write_values<T>(dw_x, out.dw_x);
  write_values<T>(dw_g, out.dw_g);
  write_values<T>(db_g, out.db_g);
  write_values<T>(dw_psi, out.dw_psi);
  write_values<T>({fine[x_size + f_size]}, out.db_psi);
}

bool is_half(Float dtype) { return dtype == kBFloat16 || dtype == kFloat16; }

// -> out as x, alpha [N, 1, H, W], gate (half inputs: alpha in float32, else [0]),
//    mask uint8 [N, H, W, ceil(F / 8)] (multiplicative: [N, H, W, 0])
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& g, const Tensor& w_x, const Tensor& w_g,
                                           const Tensor& b_g, const Tensor& w_psi, const Tensor& b_psi,
                                           bool multiplicative, bool nearest) {
  const Inputs in{x, g, w_x, w_g, b_g, w_psi, b_psi, multiplicative, nearest};
  const Sizes s = check_inputs(in);
  const Float dtype = float_of(x, "x");
  Tensor out = empty4(s.x, x.scalar_type(), x, is_channels_last(x));
  Tensor alpha = empty4({s.x.n, 1, s.x.h, s.x.w}, x.scalar_type(), x, false);
  Tensor gate = is_half(dtype) ? empty_dense({s.x.n, 1, s.x.h, s.x.w}, ScalarType::Float, x) : empty_dense({0}, x.scalar_type(), x);
  Tensor mask = empty_dense({s.x.n, s.x.h, s.x.w, multiplicative ? 0 : s.mask_bytes()}, ScalarType::Byte, x);
  if (s.x.numel() == 0) return {out, alpha, gate, mask};
  switch (dtype) {
    case kFloat64: forward_as<double>(in, s, out, alpha, gate, mask); break;
    case kBFloat16: forward_as<BFloat16>(in, s, out, alpha, gate, mask); break;
    case kFloat16: forward_as<Float16>(in, s, out, alpha, gate, mask); break;
    default: forward_as<float>(in, s, out, alpha, gate, mask);
  }
  return {out, alpha, gate, mask};
}

// gate: alpha unrounded, as forward saved it
// -> the gradients of the seven inputs; those of x and g in the memory formats of x and g
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& dout, const Tensor& dalpha, const Tensor& x, const Tensor& g, const Tensor& w_x, const Tensor& w_g,
    const Tensor& b_g, const Tensor& w_psi, const Tensor& b_psi, const Tensor& gate_in, const Tensor& mask_in,
    bool multiplicative, bool nearest) {
  const Inputs in{x, g, w_x, w_g, b_g, w_psi, b_psi, multiplicative, nearest};
  const Sizes s = check_inputs(in);
  const Float dtype = float_of(x, "x");
  check_shape(dout, "dout", {s.x.n, s.x.c, s.x.h, s.x.w});
  check_shape(dalpha, "dalpha", {s.x.n, 1, s.x.h, s.x.w});
  check_shape(gate_in, "gate", {s.x.n, 1, s.x.h, s.x.w});
  check_shape(mask_in, "mask", {s.x.n, s.x.h, s.x.w, multiplicative ? 0 : s.mask_bytes()});
  check(mask_in.scalar_type() == ScalarType::Byte, "mask", "dtype uint8", "another dtype");
  for (const Tensor* t : {&dout, &dalpha}) {
    check(t->scalar_type() == x.scalar_type(), "dout and dalpha", "the dtype of x", "another dtype");
  }
  check(gate_in.scalar_type() == (is_half(dtype) ? ScalarType::Float : x.scalar_type()), "gate",
        "dtype float32 for half inputs, else the dtype of x", "another dtype");
  const Tensor mask = torch::stable::contiguous(mask_in), gate = torch::stable::contiguous(gate_in);
  const ScalarType type = x.scalar_type();
  const int64_t f = s.inter_channels;
  const Gradients out{empty4(s.x, type, x, is_channels_last(x)), empty4(s.g, type, g, is_channels_last(g)),
                      empty_dense({f, s.x.c}, type, x), empty_dense({f, s.g.c}, type, x), empty_dense({f}, type, x),
                      empty_dense({f}, type, x), empty_dense({1}, type, x)};
  if (s.x.numel() == 0) {
    for (Tensor t : {out.dg, out.dw_x, out.dw_g, out.db_g, out.dw_psi, out.db_psi}) torch::stable::zero_(t);
  } else {
    switch (dtype) {
      case kFloat64: backward_as<double>(in, s, dout, dalpha, gate, mask, out); break;
      case kBFloat16: backward_as<BFloat16>(in, s, dout, dalpha, gate, mask, out); break;
      case kFloat16: backward_as<Float16>(in, s, dout, dalpha, gate, mask, out); break;
      default: backward_as<float>(in, s, dout, dalpha, gate, mask, out);
    }
  }
  return {out.dx, out.dg, out.dw_x, out.dw_g, out.db_g, out.dw_psi, out.db_psi};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asegnet_fast, CPU, m) {
  m.impl("attention_gate", TORCH_BOX(&forward));
  m.impl("attention_gate_backward", TORCH_BOX(&backward));
}

}  // namespace asegnet::attention_gate
